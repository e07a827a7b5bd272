"""The stages of a sweep and how far they are."""
