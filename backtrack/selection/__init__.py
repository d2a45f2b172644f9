"""Choosing a point: measure along the path, weigh target against general, say how sure that is.

space       which points: anchors, and what a sampler may propose
items       which items choose and which report, and the parts a point earns
bench       measures a point's objectives on fixed items, part by part, each at most once
racing      which point is measured next, and which is dropped (pure)
budget      what a search costs and may cost (pure)
sampling    what Optuna's samplers propose
study       the study that workers share
searching   all of it: `search`
workers     several processes of one search
measured    measurements to tables of scores that may be compared
statistics  items split, resampled, read (pure)
spacing     how far points lie apart (pure)
completing  means of points measured on part of the items (pure)
smoothing   scores smoothed over the points (pure)
front       role scores, points, utility, constraints, front (pure)
choosing    the rule that picks a point (pure)
reading     a table under a weight: scores in points and their samples (pure)
judging     from there to the choice and its candidates (pure)
reporting   and to report rows and differences (pure)
sweeping    the rule's answers at every weight, for the page (pure)
baselines   what users take without a search, measured beside the choice
guard       items that were trained on, benchmarks one chose by
wording     verdict and cautions (pure)
comparing   baselines that are no points, beside the race
progress    what is told while measuring
serving     the engine in place of the live model
selecting   all of it: `select`
"""
