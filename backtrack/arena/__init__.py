"""Compare several runs under one rule: train what is missing, measure, rank.

driver, schedule        `run_arena` and its record; which entrant is next, and what its death means
slots, ray_slots        where entrants are prepared: in this process, or as tasks of Ray
preparing, launching    train, measure and diagnose one entrant; its training by several processes
entrants, geometry      one entrant as it is recorded; what its diagnosis says of it
attempts                how often a process died over an entrant
comparison, ranking     all entrants under one rule; the table
plan                    cards, hours, disk and tokens, before anything runs
"""
