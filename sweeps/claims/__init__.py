"""Published claims, each with the command that makes the runs which test it, and verdicts from working directories."""
