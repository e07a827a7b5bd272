"""Run the stages of a sweep and show their progress."""
