"""Which probes measure columns that a sweep was trained without."""

import dataclasses
import re
from collections.abc import Sequence

from geometry.probe import METRICS
from olmo_jax.config import ModelConfig, ProbeConfig, TargetConfig
from olmo_jax.config.probe import ParametersConfig, SharpnessConfig, TextsConfig
from olmo_jax.probes.columns import ALIGNMENT, SHARPNESS
from sweeps.judge.matrices import is_of_text

_CENTRED = "_centred"
_TARGETS = r"unembedding_gauge_fixed|(unembedding|embedding|final_states|layer_\d+)(_centred)?"
_DIRECTIONS = 8  # compared by alignment, if the run's probe says nothing
# Of sharpness, if the run's probe says nothing: documents of the loss, and vectors of the trace or eigenvalue.
_DOCUMENTS, _VECTORS = 32, 8


def can_probe(column: str) -> bool:
    """Return whether a probe could measure this column of any run."""
    target, _, name = column.rpartition("/")
    if target == "alignment":
        return name in ALIGNMENT
    if target == "sharpness":
        return name in SHARPNESS
    return name in METRICS and (is_of_text(target) or re.fullmatch(_TARGETS, target) is not None)


def probe_configs(probe: ProbeConfig, columns: Sequence[str], architecture: ModelConfig) -> list[ProbeConfig]:
    """Return probes that together measure the columns of models like this, and nothing else.

    One measures all but states on named texts, and one each those on a text, so that no text is measured by what is
    asked of another. Settings are those of `probe`, the runs' own; what isn't there, such as a layer, is left out.
    """
    of_texts: dict[str, list[tuple[str, str]]] = {}
    layers = {f"layer_{i}" for i in range(architecture.n_layers)}
    others = []
    for column in columns:
        target, _, name = column.rpartition("/")
        if not is_of_text(target):
            others.append(column)
            continue
        source, _, text = target.partition(".")
        if source in layers | {"final_states"}:
            of_texts.setdefault(text, []).append((source, name))
    configs = [_config(probe, others)] if others else []
    return configs + [
        dataclasses.replace(_config(probe, ()), texts=_of_text(probe, text, found)) for text, found in of_texts.items()
    ]


def _of_text(probe: ProbeConfig, text: str, columns: Sequence[tuple[str, str]]) -> TextsConfig:
    """Return what measures metrics of states on a text, given as (states, metric)."""
    states, metrics = (tuple(dict.fromkeys(values)) for values in zip(*columns, strict=True))
    # Studies shorten the documents of the probe where their models' contexts are short.
    tokens = (probe.texts if probe.texts.names else probe).document_tokens
    return dataclasses.replace(
        probe.texts, names=(text,), every=0, states=states, metrics=metrics, document_tokens=tokens
    )


def _config(probe: ProbeConfig, columns: Sequence[str]) -> ProbeConfig:
    """Return the probe that measures these columns, none of which is of a text."""
    names: dict[str, set[str]] = {}
    centred: set[str] = set()
    for column in columns:
        target, _, name = column.rpartition("/")
        plain = target.removesuffix(_CENTRED).removesuffix("_gauge_fixed")
        plain = "layers" if plain.startswith("layer_") else plain
        names.setdefault(plain, set()).add(name)
        centred |= {plain} if target.endswith(_CENTRED) else set()
    sharpness = SharpnessConfig()
    if found := names.pop("sharpness", None):
        sharpness = SharpnessConfig(
            documents=probe.sharpness.documents or min(_DOCUMENTS, probe.documents),
            draws=(probe.sharpness.draws or _VECTORS) if found & {"trace", "trace_standard_error"} else 0,
            lanczos_steps=(probe.sharpness.lanczos_steps or _VECTORS) if "top_eigenvalue" in found else 0,
        )
    alignment = 0
    if names.pop("alignment", None):
        names.setdefault("final_states", {"points"})
        alignment = probe.alignment or _DIRECTIONS

    def chosen(name: str) -> TargetConfig:
        return TargetConfig(tuple(sorted(names.get(name, ()))), centred=name in centred)

    return dataclasses.replace(
        probe,
        every=1,
        unembedding=chosen("unembedding"),
        embedding=chosen("embedding"),
        parameters=ParametersConfig(),
        final_states=chosen("final_states"),
        layers=chosen("layers"),
        texts=TextsConfig(),
        alignment=alignment,
        sharpness=sharpness,
    )
