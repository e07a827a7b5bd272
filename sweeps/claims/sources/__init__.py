"""One file per group of claims; each registers its claims with `add`, and is imported by sweeps.claims.registry."""
