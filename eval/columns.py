"""What the columns of results mean: each evaluator declares the results that it has, and what they are of."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from olmo_jax.columns import NATS, Column, sentence

AVERAGES = {
    "in_domain": "over the domains trained on, which count alike",
    "out_of_domain": "over the other domains, which count alike",
    "macro": "over all domains, which count alike",
}


class Result(NamedTuple):
    """A result of an evaluation, or several whose names have one pattern.

    Attributes:
      pattern: regular expression of the name. Its groups enter `meaning`, and `of` of the column.
      meaning, unit, kind, of: as in Column; the meaning without a full stop.
    """

    pattern: str
    meaning: str
    unit: str
    kind: str
    of: Mapping[str, Any] = {}


def _about(statistic: str) -> dict[str, str]:
    return {"statistic": statistic}


# The losses by domain and on average, as ModelBatch.measured and measured_with_rise name them.
LOSSES = (
    Result(
        r"standard_error/(?P<domain>.+)",
        "Standard error, by document, of the loss {domain}",
        NATS,
        "evaluation",
        _about("standard_error"),
    ),
    Result(
        r"bits_per_byte/(?P<domain>.+)",
        "Loss over the bytes of the text, {domain}",
        "bits per byte",
        "evaluation",
        _about("bits_per_byte"),
    ),
    Result(r"perplexity/(?P<domain>.+)", "Exponential of the loss {domain}", "", "evaluation", _about("perplexity")),
    Result(
        r"rise_standard_error/(?P<domain>.+)",
        "Paired standard error of the loss's rise {domain}",
        NATS,
        "evaluation",
        _about("standard_error") | {"measure": "rise"},
    ),
    Result(
        r"draws_standard_error/(?P<domain>.+)",
        "Standard error, over draws, of the loss {domain}",
        NATS,
        "evaluation",
        _about("standard_error") | {"over": "draws"},
    ),
    Result(
        r"relative_rise/(?P<domain>.+)",
        "Rise of the loss as a share of the loss before, {domain}",
        "share",
        "change",
        {"measure": "relative_rise"},
    ),
    Result(r"rise/(?P<domain>.+)", "Rise of the loss {domain}", NATS, "change", {"measure": "rise"}),
    Result(r"(?P<domain>[^/]+)", "Loss {domain}", NATS, "loss"),
)


def describe_result(
    name: str, result: str, words: str, of: Mapping[str, Any], results: Sequence[Result]
) -> Column | None:
    """Return the column `name` of the result `result` of an evaluation that `words` describe; None for an unknown one.

    Args:
      of: what the evaluation is of. results: those that it has, of which the first that matches counts.
    """
    for one in results:
        if match := re.fullmatch(one.pattern, result):
            groups = {key: value for key, value in match.groupdict().items() if value is not None}
            meaning = one.meaning.format(**in_words(match.groupdict()))
            return Column(name, one.kind, one.unit, sentence(words, meaning), {**of, **one.of, **numbers(groups)})
    return None


def in_words(groups: Mapping[str, str | None]) -> dict[str, str]:
    """Return the groups of a pattern as they stand in a sentence."""
    words = {key: value or "" for key, value in groups.items()}
    if "domain" in words:
        words["domain"] = AVERAGES.get(words["domain"], f"on {words['domain']}")
    if words.get("scope"):
        words["scope"] = f", {words['scope'].removeprefix('_')}"
    if words.get("group"):
        words["group"] = f", in groups of {words['group']} inputs at most"
    if "how" in words:
        words["how"] = words["how"].replace("_", " ")
    return words


# Groups of patterns that are names, which may look like numbers.
_NAMES = {"domain", "how", "metric", "name", "states", "target", "task", "text", "unit"}


def numbers(groups: Mapping[str, str]) -> dict[str, Any]:
    """Return the groups of a pattern, those that are no names as numbers."""
    texts = {key: value.removeprefix("_") if key == "scope" else value for key, value in groups.items()}
    return {key: value if key in _NAMES else _number(value) for key, value in texts.items()}


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
