"""Measurements of a member during training."""
