"""Norms that a model may have before its unembedding, by name; free of JAX, for whoever only checks a name."""

NORMS = ("layer_norm", "affine_layer_norm", "rms_norm")
