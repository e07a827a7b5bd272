"""Checkpoint in, results out: loss by domain, quantisation, fine-tuning."""
