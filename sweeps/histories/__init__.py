"""Histories of published models: their checkpoints by revision, on the hub or in a folder."""
