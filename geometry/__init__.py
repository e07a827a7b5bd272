"""Arrays in, numbers out: the geometry of weights and representations. Knows nothing of models."""
