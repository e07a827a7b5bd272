"""Geometry against performance over public models, without training one: `olmo-jax atlas`."""
