"""Parameters of which the plain suite takes some, and the slow one the others."""

from collections.abc import Iterable
from typing import Any

import pytest


def plain(values: Iterable[Any], *kept: Any, unpack: bool = False) -> list[Any]:
    """Return the values as parameters of a test; those that aren't among `kept` are marked slow.

    Args:
      unpack: each value is a tuple of several parameters.

    Raises ValueError for a kept value that isn't there.
    """
    values = list(values)
    if absent := [value for value in kept if value not in values]:
        raise ValueError(f"{absent} isn't among {values}")

    def parameter(value: Any) -> Any:
        marks = () if value in kept else pytest.mark.slow
        return pytest.param(*(value if unpack else (value,)), marks=marks)

    return [parameter(value) for value in values]
