"""May a candidate replace an incumbent? Paired bounds, shown to be kept or broken: `gate`.

gate             the comparison, part by part, until it is decided
bounds           the mean that a bound is about
pairs            the same items on both sides, or a refusal with the first difference
decision         the interval of a gain, the outcome, the items that would decide (pure)
spending         the chance of error, shared among looks (pure)
sides            what is compared
lm_eval_results  a folder that lm-eval wrote with --log_samples
recorded         files of measurements
live             points of runs, and models
opening          what a side is, by its name
output           a sentence, rows, JUnit XML, Markdown
"""

from backtrack.gate.gate import gate

__all__ = ["gate"]
