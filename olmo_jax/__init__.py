"""Trains one cohort of language models: text in, checkpoints and metrics out."""

from olmo_jax.moved import serve_former_names

serve_former_names()
