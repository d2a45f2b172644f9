"""The report: one HTML page and its pictures, drawn from records alone."""
