"""One file per kind of architecture; registry.py lists them."""
