"""Report of a diagnosis: figures, rows and its section of a run's page."""
