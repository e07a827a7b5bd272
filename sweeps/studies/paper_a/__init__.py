"""Disentangling Geometry, Performance, and Training in Language Models (arXiv 2602.20433)."""
