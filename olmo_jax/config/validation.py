"""Configurations as frozen dataclasses that are checked when they are built.

At the edge a configuration is an ml_collections ConfigDict (`to_config_dict`), so that every field can be overridden
on the command line. Inside it is a frozen dataclass (`from_config_dict`), whose fields are declared as field.py says:
there are no other keys.
"""

import dataclasses
import difflib
import math
import re
import reprlib
import types
import typing
import unicodedata
from collections.abc import Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict

from olmo_jax.config.field import declared
from olmo_jax.errors import UserError
from olmo_jax.storage.names import LONGEST_BEGINNING

T = TypeVar("T")


class ConfigError(UserError, ValueError):
    """A configuration that can't be run; the message names the key, the value and the remedy."""

    exit_code = 2


def require(condition: bool, key: str, value: object, remedy: str) -> None:
    """Raise ConfigError unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{key} = {_shown(value)}: {remedy}")


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 300
_SHORT.maxtuple = _SHORT.maxlist = _SHORT.maxdict = _SHORT.maxset = 20


def _shown(value: object) -> str:
    """As repr, but of a bounded length: a value may come from a file, and be of any size."""
    text = _SHORT.repr(value)
    return text if len(text) <= 400 else f"{text[:400]}..."


def one_of(value: str, known: tuple[str, ...], key: str) -> None:
    """Raise ConfigError unless `value` is one of those known."""
    require(value in known, key, value, f"needs one of {', '.join(known)}")


def regular_expression(value: str, key: str) -> None:
    """Raise ConfigError unless `value` is a regular expression."""
    try:
        re.compile(value)
    except re.error as error:
        raise ConfigError(f"{key} = {value!r}: isn't a regular expression ({error}); correct it") from error


def unique(values: tuple[Any, ...], key: str) -> None:
    """Raise ConfigError for a value that occurs twice."""
    require(len(set(values)) == len(values), key, values, "names something twice; name each once")


def folder_name(value: str, key: str) -> None:
    """Raise ConfigError unless `value` can begin a folder's name on any file system that we write to."""
    require(
        bool(value) and "/" not in value and not value.startswith("."),
        key,
        value,
        "begins the name of a folder; it must not be empty, contain '/' or begin with '.'",
    )
    odd = any(unicodedata.category(character) in ("Cc", "Cs") for character in value)
    require(not odd, key, value, "begins the name of a folder; it must not contain control or undecodable characters")
    size, most = len(value.encode()), LONGEST_BEGINNING
    require(size <= most, key, value, f"begins the name of a folder and has {size} bytes; use at most {most}")


class Settings:
    """A configuration's class: a frozen dataclass whose fields are declared with `field.setting`."""

    def check(self, at: str) -> None:
        """Raise ConfigError where a field isn't within its declared bound, or fields contradict each other.

        Args:
          at: the dotted key of this configuration, for messages. Its sections have to be checked already.
        """
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            bound = declared(field).bound
            if bound is not None:
                value = getattr(self, field.name)
                require(bound.holds(value), f"{at}.{field.name}", value, bound.remedy)
        self.check_fields(at)

    def check_fields(self, at: str) -> None:
        """Raise ConfigError where fields contradict each other, or one breaks a rule that no bound can express."""


def to_config_dict(config: Any) -> ConfigDict:
    """Return the ml_collections form of a dataclass configuration, with the same nesting."""
    result = ConfigDict()
    for field in dataclasses.fields(config):
        result[field.name] = _for_config_dict(getattr(config, field.name))
    return result


def _for_config_dict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _for_config_dict(one) for key, one in value.items()}
    return to_config_dict(value) if dataclasses.is_dataclass(value) else value


def from_config_dict(kind: type[T], values: Mapping[str, Any] | ConfigDict, at: str = "config") -> T:
    """Build the frozen, checked dataclass `kind` from a (nested) mapping.

    Fields that `values` lacks keep their defaults. Raises ConfigError for an unknown key (naming the nearest one), for
    a value of the wrong type, and where `kind.check` does.
    """
    fields = {f.name: t for f, t in _typed_fields(kind)}
    built = {}
    for key, value in values.items():
        if key not in fields:
            raise ConfigError(unknown_key(at, key, fields))
        built[key] = _convert(fields[key], value, f"{at}.{key}")
    config = kind(**built)
    config.check(at)  # type: ignore[attr-defined]
    return config


def unknown_key(at: str, key: str, known: typing.Iterable[str]) -> str:
    """Return the message for a key that isn't a field: where it is, its name, and the nearest known name."""
    known = list(known)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(sorted(known))}"
    return f"{at} has no key '{key}'; {hint}"


def _typed_fields(kind: type) -> list[tuple[dataclasses.Field[Any], Any]]:
    hints = typing.get_type_hints(kind)
    return [(f, hints[f.name]) for f in dataclasses.fields(kind)]


def _plain(value: Any) -> Any:
    """Return a value of undeclared type with dicts and tuples in place of ConfigDicts and lists."""
    if isinstance(value, Mapping | ConfigDict):
        return {str(key): _plain(one) for key, one in value.items()}
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _convert(kind: Any, value: Any, at: str) -> Any:
    if dataclasses.is_dataclass(kind):
        require(isinstance(value, Mapping | ConfigDict), at, value, "needs a section with keys of its own")
        return from_config_dict(kind, value, at)  # type: ignore[arg-type]
    if typing.get_origin(kind) is dict:
        require(isinstance(value, Mapping | ConfigDict), at, value, "needs sections with keys of their own")
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(kind, types.GenericAlias):
        require(isinstance(value, tuple | list), at, value, "needs a tuple, such as ('a', 'b')")
        item = typing.get_args(kind)[0]
        return tuple(_convert(item, v, f"{at}[{i}]") for i, v in enumerate(value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        # A whole number may be larger than any float.
        value = float(value) if value.bit_length() <= 1023 else math.inf
    right = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    require(right, at, value, f"needs a value of type {kind.__name__}, not {type(value).__name__}")
    if kind is float:
        require(math.isfinite(value), at, value, "needs a finite number")
    return value
