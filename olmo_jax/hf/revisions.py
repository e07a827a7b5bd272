"""What the names of published checkpoints say: step, tokens, words, stage of training and seed.

Each suite spells its revisions in its own way. `PATTERNS` has one entry per spelling, by the suites that use it; a
spelling that is added to it is understood everywhere.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

_COUNT = r"\d+(?:[._]\d+)?"
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_STAGE = r"(?P<stage>stage\d+(?:-ingredient\d+)?)-"
_TOKENS = rf"tokens(?P<tokens>{_COUNT}[KMBT]?)"
_SEED = r"-seed-(?P<seed>[\w-]+?)"
_FORMAT = r"(?:-unsharded)?(?:-hf)?"

# By spelling, a pattern of the whole name. Groups: step, tokens, words, stage, seed; counts may have a unit.
PATTERNS = {
    "Pythia, OLMo, DataDecide": rf"(?:{_STAGE})?step[-_]?(?P<step>\d+)(?:-{_TOKENS})?(?:{_SEED})?{_FORMAT}",
    "seed first": rf"seed[-_]?(?P<seed>\d+)-step(?P<step>\d+){_FORMAT}",
    "Megatron, NeoX": r"(?:iter|global_step|global_steps)_?(?P<step>\d+)",
    "transformers": r"checkpoint-(?P<step>\d+)",
    "Amber": r"ckpt_(?P<step>\d+)",
    "BabyLM": rf"chck_(?P<words>{_COUNT}[KMB])",
    # Not in millions, which are sizes of models: 4M.
    "tokens": rf"(?P<tokens>{_COUNT}[BT])T?(?:[-_]tokens)?",
    "the last one, without a number": r"main|master|final",
}
# Revisions without a step are ordered by their tokens or words, and count these in millions as steps.
_PER_STEP = 10**6


class Name(NamedTuple):
    """What a revision's name says; None for what it doesn't.

    Attributes:
      step: number of the update, or of the checkpoint where only these are counted.
      tokens, words: of text, seen by then. stage: of a training in several, each of which counts from 0.
      seed: as the suite calls it.
    """

    step: int | None = None
    tokens: int | None = None
    words: int | None = None
    stage: str | None = None
    seed: str | None = None

    @property
    def place(self) -> int | None:
        """Return the step, or else the millions of tokens or words, by which the checkpoints of a run are ordered."""
        if self.step is not None:
            return self.step
        seen = self.tokens if self.tokens is not None else self.words
        return None if seen is None else round(seen / _PER_STEP)


def parse(name: str) -> Name | None:
    """Return what a revision's name says; None for a name of no known spelling. Upper and lower case are the same.

    In numbers "_" and "." separate decimals: step3000-tokens12.5B, 1_5B.
    """
    for pattern in PATTERNS.values():
        if match := re.fullmatch(pattern, name, flags=re.IGNORECASE):
            return parsed(match.groupdict())
    return None


def parsed(groups: Mapping[str, str | None]) -> Name:
    """Return what the groups of a pattern say: step, tokens, words, stage and seed, as far as they matched."""
    step, tokens, words = (_count(groups.get(key)) for key in ("step", "tokens", "words"))
    return Name(step, tokens, words, groups.get("stage"), groups.get("seed"))


def _count(text: str | None) -> int | None:
    """Return 12000000000 for "12B"."""
    if not text:
        return None
    unit = text[-1].lower() if text[-1].isalpha() else ""
    return round(float(text[: len(text) - len(unit)].replace("_", ".")) * _UNITS[unit])
