"""Describe the columns of results: each evaluator declares its results and what they measure."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from olmo_jax.columns import NATS, Column, sentence

AVERAGES = {
    "in_domain": "over the domains trained on, with equal weights",
    "out_of_domain": "over the other domains, with equal weights",
    "macro": "over all domains, with equal weights",
}


class Result(NamedTuple):
    """A result of an evaluation, or several whose names match one pattern.

    Attributes:
      pattern: regular expression that the name matches. Its groups are inserted into `meaning` and the column's `of`.
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
        "Loss per byte of the text, {domain}",
        "bits per byte",
        "evaluation",
        _about("bits_per_byte"),
    ),
    Result(r"perplexity/(?P<domain>.+)", "Exponential of the loss {domain}", "", "evaluation", _about("perplexity")),
    Result(
        r"rise_standard_error/(?P<domain>.+)",
        "Paired standard error of the rise of the loss {domain}",
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
    """Return the column `name` for a result of an evaluation that `words` describe; None for an unknown result.

    Args:
      result: its name within the evaluation. of: what the evaluation measures, as in Column.
      results: the evaluation's results, of which the first that matches is used.
    """
    for one in results:
        if match := re.fullmatch(one.pattern, result):
            groups = {key: value for key, value in match.groupdict().items() if value is not None}
            meaning = one.meaning.format(**in_words(match.groupdict()))
            return Column(name, one.kind, one.unit, sentence(words, meaning), {**of, **one.of, **numbers(groups)})
    return None


def in_words(groups: Mapping[str, str | None]) -> dict[str, str]:
    """Return the groups of a pattern as they appear in a sentence."""
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


# Groups of patterns that are names and stay text, even where they look like numbers.
_NAMES = {"domain", "how", "metric", "name", "states", "target", "task", "text", "unit"}


def numbers(groups: Mapping[str, str]) -> dict[str, Any]:
    """Return the groups of a pattern, with those that aren't names converted to numbers where possible."""
    texts = {key: value.removeprefix("_") if key == "scope" else value for key, value in groups.items()}
    return {key: value if key in _NAMES else _number(value) for key, value in texts.items()}


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
