"""What training, probes and evaluations cost on an accelerator: `make gpu`, or `python -m benchmarks.gpu`.

A part is a module in parts/, found by listing that package, so that a study adds its measurements by adding a file. It
has NAME, TITLE (a line above its table), VERSION (raise it where the same case measures something else), NEEDS (modules
beyond those that every part needs), COLUMNS (of its table), and two functions: `cases(scale)`, the cases by name, each
a dict that JSON can hold, and `measure(case)`, a dict of what was measured. Heavy imports belong in `measure`: the
command line lists parts without JAX, and each part is measured in a process of its own.
"""
