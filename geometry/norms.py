"""Names of the norms that a model may have before its unembedding; importing them doesn't import JAX."""

NORMS = ("layer_norm", "affine_layer_norm", "rms_norm")
