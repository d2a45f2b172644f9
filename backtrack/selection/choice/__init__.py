"""The choice: rule, candidates, sweep over weights, verdict, and `select`."""
