"""The search: which point is measured next, on how many items.

driver        `search`: lock the run, measure until nothing is left; one worker
scheduler     decides the next evaluation: anchor, proposal or next rung
space         the anchors, and the space a sampler draws from (plain data)
sampler       asks Optuna's samplers for the next point
racing        which points are dropped, whose rung is next (pure)
budget        what a search has cost, may cost and will cost (pure)
observations  measured points as trials of the sampler and of the study
study         the Optuna study that workers share
baselines     measures the baselines that are not points
workers       several processes that search one run
"""
