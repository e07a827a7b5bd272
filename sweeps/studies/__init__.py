"""One folder per study: its configurations, claims, figures and results."""
