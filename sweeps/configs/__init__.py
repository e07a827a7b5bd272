"""Configurations of sweeps, each a get_config(arg) file."""
