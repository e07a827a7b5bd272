"""How a configuration's fields are declared: once, with their meaning, unit, bound and role.

    learning_rate: float = setting(3e-4, Role.TRACED, "Peak of the learning rate.", bound=POSITIVE)

All code that depends on what a field is reads these declarations. They decide checks, the reference of the
configuration, which runs share a cohort, which values each member has for itself, what enters a run's identity, and
which columns of the table are settings.
"""

import dataclasses
import enum
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class Role(enum.StrEnum):
    """What a field decides.

    STATIC: the same for all members of a cohort, whose program is compiled for it. TRACED: a number of one member, an
    argument of the program. SEED: a seed of a member's random numbers. DATA: which text there is, which enters a run's
    identity by the fingerprint of the prepared data, and which parameters a run starts from. PLACE: names and
    locations. OBSERVATION: what is measured and kept, and when. EXECUTION: how and on what a step is carried out;
    results agree within rounding.
    """

    STATIC = "static"
    TRACED = "traced"
    SEED = "seed"
    DATA = "data"
    PLACE = "place"
    OBSERVATION = "observation"
    EXECUTION = "execution"


# Roles of settings that don't affect parameters, so that runs which differ only in these are the same run.
NOT_IDENTITY = frozenset({Role.PLACE, Role.OBSERVATION, Role.EXECUTION})


class Bound(NamedTuple):
    """The values that a field may have: `text` for the reference, `remedy` for an error, and `holds`, the test."""

    text: str
    remedy: str
    holds: Callable[[Any], bool]


class Setting(NamedTuple):
    """The declaration of a field. `meaning`: sentences, the first of which stands alone. `unit`: "" for none."""

    role: Role
    meaning: str
    unit: str
    bound: Bound | None


def setting(
    default: Any, role: Role, meaning: str, *, bound: Bound | None = None, unit: str = "", **identity: Any
) -> Any:
    """Return the dataclass field of a setting.

    Args:
      identity: `neutral`, the value at which a later field does nothing, if that isn't its default (see identity.py).
    """
    metadata = {"setting": Setting(role, meaning, unit, bound), **identity}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def declared(field: dataclasses.Field[Any]) -> Setting:
    """Return what is declared of a field; one that declares nothing is static, so that it separates runs."""
    return field.metadata.get("setting") or Setting(Role.STATIC, "", "", None)


def settings(config: Any, at: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """Yield the dotted key, the field and the value of every setting in a configuration and its sections."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from settings(value, f"{at}{field.name}.")
        else:
            yield f"{at}{field.name}", field, value


def reset(config: T, *roles: Role) -> T:
    """Return a configuration whose settings of these roles are at their defaults, in its sections too."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = reset(value, *roles)
        elif declared(field).role in roles:
            changes[field.name] = field.default
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def at_least(least: float, remedy: str) -> Bound:
    """Return the bound of finite numbers that aren't smaller than `least`."""
    return Bound(f">= {least:g}", remedy, lambda value: least <= value < math.inf)


def within(low: float, high: float, remedy: str = "") -> Bound:
    """Return the bound of numbers from `low` to `high`, both included."""
    return Bound(f"[{low:g}, {high:g}]", remedy or f"needs a number in [{low:g}, {high:g}]", lambda v: low <= v <= high)


def choice(*known: str) -> Bound:
    """Return the bound of a field that takes one of these words."""
    return Bound(" | ".join(known), f"needs one of {', '.join(known)}", lambda value: value in known)


def each(bound: Bound, remedy: str = "") -> Bound:
    """Return the bound of tuples whose items are all within `bound`."""
    return Bound(f"each {bound.text}", remedy or bound.remedy, lambda values: all(map(bound.holds, values)))


POSITIVE = Bound("> 0", "needs a positive number", lambda value: 0 < value < math.inf)
POSITIVES = each(POSITIVE, "needs positive numbers")
POSITIVE_WHOLE = Bound("> 0", "needs a positive whole number", lambda value: value > 0)
NOT_NEGATIVE = at_least(0, "needs a number of 0 or more")
SHARE = within(0, 1)
BELOW_ONE = Bound("[0, 1)", "needs a number in [0, 1)", lambda value: 0 <= value < 1)
SEED = Bound("[0, 2^32)", "needs a number in [0, 2^32)", lambda value: 0 <= value < 2**32)
SEEDS = each(SEED, "needs numbers in [0, 2^32)")
NOT_EMPTY = Bound("not empty", "must not be empty", bool)
