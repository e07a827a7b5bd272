"""Trains one cohort of language models: text in, checkpoints and metrics out."""
