"""The page of a selection: its tables, its drawings and what its script reads."""
