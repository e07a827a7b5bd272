"""Judge a metric by five tests: what `olmo-jax judge` does.

One file per test: gauge, null, noise, gain, cause. Each returns a Finding; card.py puts the five together.
"""
