"""Verbs on single models: import, export, generate, geometry."""
