"""Carry out the verbs that work on single models: import, export, generate, geometry."""
