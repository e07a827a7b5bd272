"""The reference of the configuration: every setting with its default, its allowed values, its role and its meaning.

`python -m sweeps.planning.reference` writes docs/configuration.md from the declarations of the fields.
"""

import dataclasses
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from eval.config import EvalConfig
from olmo_jax.config import ConfigError, TrainConfig, unknown_key
from olmo_jax.config.field import Role, declared
from sweeps.planning.stack_config import StackConfig

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
_ROLES = {
    Role.STATIC: "compiled into a cohort's program; runs that differ in it train in different cohorts",
    Role.TRACED: "an input of the program, per run; runs that differ in it train side by side in one program",
    Role.SEED: "a seed of random numbers; statistics don't count it as a setting",
    Role.DATA: "which text is used; enters a run's id through the fingerprint of the prepared data",
    Role.PLACE: "names and locations; not part of a run's identity",
    Role.OBSERVATION: "what is measured and kept, and when; not part of a run's identity",
    Role.EXECUTION: "how a run is executed, and on which devices; results agree within rounding",
}


class Entry(NamedTuple):
    """One setting of a section, with its default as it is written on the command line."""

    key: str
    default: str
    bound: str
    unit: str
    role: Role
    meaning: str


class Section(NamedTuple):
    """A section of the configuration: its dotted key, the description of its class, and its own settings."""

    key: str
    about: str
    entries: tuple[Entry, ...]


def sections() -> Iterator[Section]:
    """Yield every section of a sweep's configuration, in the order of their declaration."""
    yield from _sections("train", TrainConfig())
    yield from _sections("evaluation", EvalConfig())
    yield from _sections("parts", StackConfig())


def _sections(key: str, config: Any) -> Iterator[Section]:
    entries, inner = [], []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            inner.append((f"{key}.{field.name}", value))
            continue
        setting = declared(field)
        bound = setting.bound.text if setting.bound else ""
        entries.append(Entry(f"{key}.{field.name}", repr(value), bound, setting.unit, setting.role, setting.meaning))
    about = " ".join((type(config).__doc__ or "").split("\n\n")[0].split())
    yield Section(key, about, tuple(entries))
    for name, value in inner:
        yield from _sections(name, value)


def keys() -> list[str]:
    """Return the dotted key of every setting of a sweep."""
    return [entry.key for section in sections() for entry in section.entries]


def lines(part: str) -> list[str]:
    """Return what `olmo-jax config PART` prints: the sections whose key begins or ends with PART, else settings.

    Raises ConfigError if there is no such section and no such setting.
    """
    everything = list(sections())
    wanted = part.removeprefix("config.")
    selected = [s for s in everything if not wanted or _is_of(s.key, wanted)]
    if not selected:
        of_one = [s._replace(entries=tuple(e for e in s.entries if _is_of(e.key, wanted))) for s in everything]
        selected = [s for s in of_one if s.entries]
    if not selected:
        raise ConfigError(unknown_key("config", wanted, [s.key for s in everything]))
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    result = []
    for section in selected:
        result += ["", f"config.{section.key}: {section.about}"]
        for entry in section.entries:
            facts = ", ".join(filter(None, (entry.bound, entry.unit, entry.role)))
            result.append(f"  --config.{entry.key}={entry.default}  ({facts})")
            result += textwrap.wrap(entry.meaning, width - 6, initial_indent="      ", subsequent_indent="      ")
    return result[1:]


def _is_of(key: str, part: str) -> bool:
    return key == part or key.startswith(f"{part}.") or key.endswith(f".{part}")


def page() -> str:
    """Return docs/configuration.md."""
    text = [
        "# Configuration",
        "",
        "Every setting of a sweep, generated from the declarations of its fields. `olmo-jax config` prints the same, "
        "and `olmo-jax config train.optimizer` or `olmo-jax config weight_decay` prints a part of it. A file's "
        "`get_config` returns these sections, and `--config.train.optimizer.weight_decay=0.5` changes one setting. In "
        "the configuration of a single run, without a grid, `train.` is left out.",
        "",
        "| role | what it means |",
        "| --- | --- |",
        *(f"| {role} | {words} |" for role, words in _ROLES.items()),
    ]
    for section in sections():
        text += ["", f"## config.{section.key}", "", section.about]
        if section.entries:
            text += ["", "| key | default | values | role | meaning |", "| --- | --- | --- | --- | --- |"]
        for entry in section.entries:
            values = " ".join(filter(None, (entry.bound, f"({entry.unit})" if entry.unit else "")))
            cells = (f"`{entry.key.rpartition('.')[2]}`", f"`{entry.default}`", values, entry.role, entry.meaning)
            text.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
