"""Configurations of sweeps, each a file with a function get_config(arg)."""
