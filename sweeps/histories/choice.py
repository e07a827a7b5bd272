"""Which revisions of a history to take: a list, a pattern, a regular expression, or a number spread over these."""

import dataclasses
import math
import re
import sys
from collections.abc import Sequence

from olmo_jax.config import ConfigError
from olmo_jax.hf.revisions import Name, parse, parsed
from olmo_jax.storage.names import matching

DEFAULT = 20


@dataclasses.dataclass(frozen=True)
class Revisions:
    """The value of --revisions.

    Attributes:
      text: as it was given; "" for DEFAULT checkpoints, spread evenly over the logarithm of the step; "5 of stage1-*"
        for 5 of those that the pattern or list names.
    """

    text: str = ""

    def __post_init__(self) -> None:
        if self._is_expression:
            try:
                groups = re.compile(self.text).groupindex
            except (re.error, OverflowError, RecursionError) as error:
                raise ConfigError(f"--revisions={self.text}: isn't a regular expression ({error})") from error
            if unknown := groups.keys() - {*Name._fields}:
                raise ConfigError(
                    f"--revisions={self.text}: has the group {min(unknown)}; groups are {', '.join(Name._fields)}"
                )
        elif self._count < 1:
            raise ConfigError(f"--revisions={self.text}: needs 1 or more")

    @property
    def _is_expression(self) -> bool:
        return "(?P<" in self.text

    @property
    def _count(self) -> int:
        """How many are spread over those that match; without a number, all of them."""
        match = re.fullmatch(r"(\d+)(?: of .+)?", self.text)
        return int(match[1]) if match else DEFAULT if not self.text else sys.maxsize

    @property
    def _patterns(self) -> str:
        """What names revisions; "" for all."""
        return re.sub(r"^\d+( of (?=.)|$)", "", self.text)

    def parse(self, name: str) -> Name | None:
        """Return what a revision's name says, by the expression's groups if this is one that matches the whole name."""
        if self._is_expression:
            match = re.fullmatch(self.text, name)
            try:
                return parsed(match.groupdict()) if match else None
            except (ValueError, KeyError) as error:
                raise ConfigError(
                    f"--revisions={self.text}: of {name}, a group for step, tokens or words isn't a number such as 12B"
                ) from error
        return parse(name)

    def choose(self, names: Sequence[str]) -> list[str]:
        """Return the chosen ones of a history's revisions, in their order. Raises ConfigError for one that it lacks."""
        if self._is_expression:
            return list(names)
        return self._spread(self._named(names), self._count)

    def _named(self, names: Sequence[str]) -> list[str]:
        if not self._patterns:
            return list(names)
        chosen: set[str] = set()
        patterns = [pattern for pattern in self._patterns.split(",") if pattern]
        if not patterns:
            raise ConfigError(f"--revisions={self.text}: names no revision")
        for pattern in patterns:
            found = matching(names, pattern)
            if not found:
                some = ", ".join([*names[:3], "...", names[-1]] if len(names) > 4 else names)
                raise ConfigError(f"--revisions: no revision is called {pattern}; there are {some}")
            chosen |= {*found}
        return [name for name in names if name in chosen]

    def _spread(self, names: Sequence[str], count: int) -> list[str]:
        """Return the first, the last, and those nearest to points between them, evenly spaced in log(1 + step).

        Of each training separately, where seeds or stages differ.
        """
        trainings: dict[tuple[str | None, str | None], dict[str, int]] = {}
        for name in names:
            said = self.parse(name) or Name()
            trainings.setdefault((said.stage, said.seed), {})[name] = said.place or 0
        chosen: set[str] = set()
        for steps in trainings.values():
            chosen |= _nearest(steps, count)
        return [name for name in names if name in chosen]


EVERY = Revisions("*")


def _nearest(steps: dict[str, int], count: int) -> set[str]:
    at = {name: math.log1p(step) for name, step in steps.items()}
    if len(at) <= count:
        return {*at}
    first, last = min(at.values()), max(at.values())
    if count == 1:
        return {max(at, key=lambda name: at[name])}
    left, chosen = dict(at), set()
    for i in range(count):
        target = first + (last - first) * i / (count - 1)
        nearest = min(left, key=lambda name: abs(left[name] - target))
        chosen.add(nearest)
        del left[nearest]
    return chosen


def with_braces(text: str) -> list[str]:
    """Return the names that a text with one {1..9} or {a,b} stands for, as a shell would expand it."""
    match = re.fullmatch(r"(.*)\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}(.*)", text)
    if not match:
        return [text]
    before, first, last, listed, after = match.groups()
    middle = listed.split(",") if listed is not None else [str(n) for n in range(int(first), int(last) + 1)]
    if not middle:
        raise ConfigError(f"{text}: {{{first}..{last}}} is empty; give the smaller number first")
    return [f"{before}{part}{after}" for part in middle]
