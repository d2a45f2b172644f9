"""An arena drawn: figures, rows and page."""
