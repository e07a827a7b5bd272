"""The description of a column of a sweep's table; the code that measures a column declares it."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

NOT_DESCRIBED = "not described"
NATS = "nats per token"


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of a sweep's table.

    Attributes:
      name: the name under which it is stored.
      kind: "identity", "setting", "geometry", "loss", "change" (the effect on the loss of a change to the
        model), "task", "training", "count", or "evaluation" for other results.
      unit: "" for text, and for numbers that have none.
      meaning: one sentence, or NOT_DESCRIBED.
      of: what it describes, such as {"after": "quantize", "method": "gptq", "bits": 3, "domain": "code"}. The key
        "statistic" marks a number about another column: its spread, error or rescaling, or a point of a curve.
    """

    name: str
    kind: str
    unit: str
    meaning: str
    of: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def sentence(before: str, meaning: str) -> str:
    """Return a sentence of what a column describes (`before`) and its meaning; NOT_DESCRIBED is returned as it is."""
    if meaning == NOT_DESCRIBED:
        return meaning
    word = meaning.split()[0]
    inner = meaning[0].lower() + meaning[1:] if word[1:].islower() or word == "A" else meaning  # not N, TwoNN, KL
    text = f"{before}: {inner}" if before else meaning
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


def first_sentence(text: str) -> str:
    """Return the first sentence of a docstring: up to a full stop before a capital letter, or a blank line."""
    paragraph = re.split(r"\n\s*\n", text.strip())[0]
    line = " ".join(paragraph.split())
    return re.split(r"(?<=\.) (?=[A-Z])", line)[0]
