"""A diagnosis drawn: figures, rows and its section of the page."""
