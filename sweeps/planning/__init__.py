"""Turn a grid into runs and cohorts, and check all of them before anything runs."""
