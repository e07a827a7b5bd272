"""The meaning of a probe's columns: which metric, and of which matrix or states."""

import re
from typing import Any

from geometry.probe import COUNTS, METRICS
from olmo_jax.columns import NATS, NOT_DESCRIBED, Column, first_sentence, sentence

# The suffix of a target whose columns are the standard deviations of another target's over the probe's sets.
SPREAD = "_spread"
# The suffix of a target whose columns are the singular values of another target, by place.
SPECTRUM = "_spectrum"
# The prefix of targets that are a text's loss and accuracy, measured during training.
TEXTS = "texts."

_CENTRED = "_centred"
_TARGETS = {
    "unembedding": "the unembedding",
    "unembedding_gauge_fixed": "the unembedding without the part that the logits can't see",
    "embedding": "the embedding",
    "final_states": "the states after the final norm",
}
ALIGNMENT = {
    "principal": "overlap of the principal subspaces of the final states and the unembedding, 0 to 1",
    "principal_z": "overlap of these principal subspaces, in standard deviations above that of random ones",
    "log_ratio": "log-alignment ratio of the unembedding with the final states, about 1/2 if they are independent",
}
SHARPNESS = {
    "critical": "critical sharpness along the gradient of the loss on the probe's documents",
    "trace": "trace of that loss's Hessian",
    "trace_standard_error": "standard error of that trace",
    "top_eigenvalue": "largest eigenvalue of that loss's Hessian",
}
_PERCENT = ("effective_rank_percent",)


# Quantiles of the distribution whose mean is local_two_nn: points of a curve, as singular values are of a spectrum.
_QUANTILE = re.compile(r"local_two_nn_q\d+")


def describe(name: str) -> Column | None:
    """Return the column `<target>/<metric>` of a probe; None if no probe has such a target."""
    target, _, metric = name.rpartition("/")
    if target.startswith(TEXTS):
        return _of_text(name, target.removeprefix(TEXTS), metric)
    if target.endswith(SPREAD):
        inner = describe(f"{target.removesuffix(SPREAD)}/{metric}")
        meaning = f"Standard deviation of {target.removesuffix(SPREAD)}/{metric} over the probe's sets of documents."
        return inner and Column(name, inner.kind, inner.unit, meaning, {**inner.of, "statistic": "spread"})
    if target == "alignment" and metric in ALIGNMENT:
        return Column(
            name, "geometry", "", sentence("Alignment", ALIGNMENT[metric]), {"target": target, "metric": metric}
        )
    if target == "sharpness" and metric in SHARPNESS:
        measured = {"target": target, "metric": metric}
        measured |= {"statistic": "standard_error"} if metric == "trace_standard_error" else {}
        return Column(name, "geometry", "", sentence("Sharpness", SHARPNESS[metric]), measured)
    of = _target(target.removesuffix(SPECTRUM))
    if of is None:
        return None
    if target.endswith(SPECTRUM) and metric.isdigit():
        meaning = f"Singular value {metric} of {_in_words(of)}, counted from the largest."
        return Column(name, "geometry", "", meaning, of | {"statistic": "singular_value", "place": int(metric)})
    kind = "count" if metric in COUNTS else "geometry"
    unit = "% of the columns" if metric in _PERCENT else "rows" if metric in ("points", "duplicates") else ""
    statistic = {"statistic": "quantile"} if _QUANTILE.fullmatch(metric) else {}
    meaning = sentence(f"Of {_in_words(of)}", metric_meaning(metric))
    return Column(name, kind, unit, meaning, of | {"metric": metric} | statistic)


def _of_text(name: str, text: str, metric: str) -> Column | None:
    if metric == "loss":
        return Column(name, "loss", NATS, f"Loss on the text {text}, measured during training.", {"text": text})
    if metric == "accuracy":
        meaning = f"Share of the tokens of the text {text} that the model ranks first, measured during training."
        return Column(name, "evaluation", "share", meaning, {"text": text, "metric": metric})
    return None


def metric_meaning(name: str) -> str:
    """Return the first sentence of a registered metric's docstring; NOT_DESCRIBED if there is none."""
    docstring = METRICS[name].__doc__ if name in METRICS else None
    return first_sentence(docstring) if docstring else NOT_DESCRIBED


def _target(target: str) -> dict[str, Any] | None:
    """Return what a target describes; None if no probe has such a target."""
    plain = target.removesuffix(_CENTRED)
    of: dict[str, Any] = {"target": target}
    if match := re.fullmatch(r"(?P<states>layer_\d+|final_states)(?:\.(?P<text>.+))?", plain):
        of |= {key: value for key, value in match.groupdict().items() if value}
    elif re.match(r"blocks_\d+[/.]", plain) or plain == "positions":
        of["parameter"] = plain
    elif plain not in _TARGETS:
        return None
    return of | ({"centred": True} if plain != target else {})


def _in_words(of: dict[str, Any]) -> str:
    plain = of["target"].removesuffix(_CENTRED)
    if "parameter" in of:
        words = f"the parameter {plain}"
    elif "states" in of:
        layer = re.fullmatch(r"layer_(\d+)", of["states"])
        words = f"the states after block {layer[1]}" if layer else _TARGETS[of["states"]]
        words += f", on the text {of['text']}" if "text" in of else ""
    else:
        words = _TARGETS[plain]
    return f"{words}, without the mean row" if "centred" in of else words
