"""One file per evaluation of a checkpoint."""
