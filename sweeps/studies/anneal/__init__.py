"""Annealing, sharpness and averaging at the end of training, told apart from tokens and rate (anneal.py)."""
