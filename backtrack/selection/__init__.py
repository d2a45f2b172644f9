"""Search the path and choose a point; say how certain the choice is.

measure/               points and baselines on fixed items
    evaluator          has points measured on fixed items, each at most once; records
    items              the items of each objective by split, in rungs
    baselines          what users take without a search, measured beside the choice
    contamination      items shared with the training data, and benchmarks that were chosen on
    progress           what is reported while measuring
measurers/             who measures
    measurer           one placed model and its objectives, asked for scores
    executor           where requests are answered: in this process, or elsewhere
    ray_executor       by actors of a Ray cluster
    ray_cluster        the connection to it, and what a process takes of it
    remote_measurer, run_copy   what runs in an actor, and how a run gets there
    baseline_models    the models of baselines off the path
    engines            the engine a recipe asks for, started
search/                which point is measured next: `search`
    driver             decides round by round, has each measured, records
    scheduler          the next round of evaluations, from the recorded measurements alone
    observations       what the measurements say of the points: smoothed scores
    racing, budget     which point is promoted or dropped, and what a rung costs (pure)
    space              the anchors, and the points a sampler may propose
    sampler, study     Optuna's samplers, and the study for dashboards
    baselines          baselines off the path, measured beside the race
stats/                 statistics over items and points (pure)
    items              selection and report items, nested rungs
    table              measurements to tables of comparable scores
    recorded_setting   the setting of recorded measurements
    bootstrap          resampled means, intervals, power
    distances          distances between points
    estimates          mean scores of points measured on some of the items
    gaussian_process   smoothing over the points
    utility            role scores, points, utility
    bounds             the user's constraints
    front              Pareto front, hypervolume, knee
    scores, smoothed   role scores of a table, measured and smoothed, without and under a weight
    comparisons        records of the report items: rows, differences, baselines
choice/                the choice: `select`
    rule               the rule that picks a point (pure)
    candidates         the rule applied to the selection items (pure)
    sweep              the rule's answers at every weight (pure)
    verdict            claims and cautions in words (pure)
    select             all of it: `select`
"""
