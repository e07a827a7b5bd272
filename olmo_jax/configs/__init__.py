"""Configurations of single runs, each a get_config(arg) file."""
