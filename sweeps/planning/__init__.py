"""From a grid to runs and cohorts, all checked before anything runs."""
