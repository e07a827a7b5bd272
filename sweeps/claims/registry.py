"""The claims, in the order of the files in sweeps/claims/sources and of their registration in these."""

import importlib
import pkgutil

from sweeps.claims import sources
from sweeps.claims.claim import Claim

_CLAIMS: dict[str, Claim] = {}


def add(*claims: Claim) -> None:
    """Register claims. Raises ValueError for an id that another claim has."""
    for claim in claims:
        if _CLAIMS.setdefault(claim.id, claim) is not claim:
            raise ValueError(f"claim {claim.id!r} is registered twice; rename one")


def registered() -> list[Claim]:
    """Return all claims."""
    for module in sorted(module.name for module in pkgutil.iter_modules(sources.__path__)):
        importlib.import_module(f"{sources.__name__}.{module}")
    return list(_CLAIMS.values())
