"""The parts of `make gpu`, one module each; see benchmarks/gpu/__init__.py for what a part has."""
