"""The measurements of both papers on published, fully trained models."""
