"""Measure what training, probes and evaluations cost on an accelerator: `make gpu`, or `python -m benchmarks.gpu`.

A part is a module in parts/, found by listing that package, so that a study adds its measurements by adding a file. It
has NAME, TITLE (a line above its table), VERSION (raise it when the same case measures something else), NEEDS (modules
beyond those that every part needs), COLUMNS (of its table), and two functions: `cases(scale)` returns the cases by
name, each a dict that JSON can hold, and `measure(case)` returns a dict of what was measured. Heavy imports belong in
`measure`: the command lists parts without JAX, and measures each part in a separate process.
"""
