"""Choosing a point: measure along the path, weigh target against general, say how sure that is.

space       which points: anchors, and what a sampler may propose
bench       measures a point's objectives on fixed items, part by part, each at most once
racing      which point is measured next, and which is dropped (pure)
budget      what a search costs and may cost (pure)
study       the study that workers share, and Optuna's samplers; the only module that imports it
searching   all of it: `search`
workers     several processes of one search
measured    measurements to tables of scores that may be compared
statistics  items split, resampled, read (pure)
front       role scores, points, utility, constraints, front (pure)
choosing    the rule that picks a point (pure)
judging     tables to candidates, report rows and differences (pure)
sweeping    the rule's answers at every weight, for the page (pure)
baselines   what users take without a search, measured beside the choice
guard       items that were trained on, benchmarks one chose by
wording     verdict and cautions (pure)
selecting   all of it: `select`
"""
