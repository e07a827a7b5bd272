"""Define what a part of the measurements is, and list the parts."""

import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, cast

from benchmarks.gpu import parts
from olmo_jax.errors import UserError

SCALES = ("full", "dry")

# Modules that the training step itself imports.
_EVERY_PART_NEEDS = ("jax", "flax", "optax", "ml_collections")


class UsageError(UserError):
    """The command asks for something that doesn't exist or can't be done here."""

    exit_code = 2


class UnfinishedError(Exception):
    """A case was stopped where the next start can continue it; the message says where."""


class Column(NamedTuple):
    """A column of a part's table: its heading, the key in what was measured, and the format of the number."""

    heading: str
    key: str
    form: str

    def shown(self, measured: dict[str, Any]) -> str:
        """Return the number as the table shows it; "" if it was not measured."""
        value = measured.get(self.key)
        return "" if value is None else format(value, self.form)


class Part(Protocol):
    """A part of the measurements; see benchmarks/gpu/__init__.py."""

    NAME: str
    TITLE: str
    VERSION: int
    NEEDS: tuple[str, ...]
    COLUMNS: tuple[Column, ...]

    def cases(self, scale: str) -> dict[str, dict[str, Any]]:
        """Return the cases of a scale ("full" or "dry") by name."""
        ...

    def measure(self, case: dict[str, Any]) -> dict[str, Any]:
        """Return what was measured of a case, as JSON can hold it."""
        ...


def all_parts() -> dict[str, Part]:
    """Return the parts by name, sorted. Raises UsageError for a module that isn't a part."""
    by_name: dict[str, Part] = {}
    for info in pkgutil.iter_modules(parts.__path__):
        module = importlib.import_module(f"{parts.__name__}.{info.name}")
        needed = [*Part.__annotations__, "cases", "measure"]
        if missing := [name for name in needed if not hasattr(module, name)]:
            raise UsageError(f"{module.__file__}: lacks {', '.join(missing)}, which every part needs; add it")
        part = cast(Part, module)
        if not re.fullmatch("[a-z0-9_]+", part.NAME):  # in file names a hyphen follows it
            raise UsageError(
                f"{module.__file__}: NAME = {part.NAME!r} may contain only lower-case letters, digits and _"
            )
        if part.NAME in by_name:
            raise UsageError(f"{module.__file__}: another part has the name {part.NAME!r}; rename one")
        by_name[part.NAME] = part
    return dict(sorted(by_name.items()))


def chosen_parts(names: Sequence[str]) -> dict[str, Part]:
    """Return the parts named, or all for (). Raises UsageError for an unknown one."""
    parts_by_name = all_parts()
    if unknown := [name for name in names if name not in parts_by_name]:
        raise UsageError(f"--only={unknown[0]}: there is no such part; choose from {', '.join(parts_by_name)}")
    return {name: part for name, part in parts_by_name.items() if not names or name in names}


def missing_modules(part: Part) -> list[str]:
    """Return the modules that a part needs and this Python lacks."""
    return [name for name in (*_EVERY_PART_NEEDS, *part.NEEDS) if importlib.util.find_spec(name) is None]
