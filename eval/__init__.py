"""Checkpoint in, results out: loss by domain, quantisation, fine-tuning."""

from olmo_jax.moved import serve_former_names

serve_former_names()
