"""Choosing a point: measure along the path, weigh target against general, say how sure that is.

space       which points: anchors, and what a sampler may propose
bench       measures a point's objectives on fixed items, each at most once
study       anchors, then Optuna's proposals; the only module that imports it
measured    measurements to tables of scores that may be compared
statistics  items split, resampled, read (pure)
front       role scores, points, utility, constraints, front (pure)
choosing    the rule that picks a point (pure)
judging     tables to candidates, report rows and differences (pure)
wording     verdict and cautions (pure)
selecting   all of it: `select`
"""
