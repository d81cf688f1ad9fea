"""One stage from settings to a run's folder."""
