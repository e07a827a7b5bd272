"""The parts of `make gpu`, a module each; see benchmarks/gpu/__init__.py for what a part has."""
