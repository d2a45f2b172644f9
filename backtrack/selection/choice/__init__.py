"""The choice: rule, candidates, report items, verdict, sweep."""
