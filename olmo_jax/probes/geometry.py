"""Measure the geometry of a member during training: of its matrices, and of its states on fixed documents.

ProbeConfig says what is measured. All targets with the same interval are measured by one compiled program.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from geometry.alignment import log_alignment_ratio, principal_alignment
from geometry.gauge import centred, gauge_fix
from geometry.probe import COUNTS, METRICS, SPECTRUM_PLACES, Metric, check_names, summarize
from olmo_jax import model
from olmo_jax.config import ConfigError, ModelConfig, ProbeConfig, TargetConfig, require
from olmo_jax.execution import sharding
from olmo_jax.execution.attention import Spans
from olmo_jax.execution.members import over_members
from olmo_jax.probes.sharpness import measure_sharpness
from olmo_jax.probes.texts import EvaluationSet, measure_texts, members_at_once


class Documents(NamedTuple):
    """S disjoint sets of N fixed documents, each after a BOS and padded on the right, and P tokens to measure per set.

    tokens_SNL: the tokens. points_SP: indices into the flattened N x L tokens of a set. length_SN: tokens of each
      document without BOS and padding.
    """

    tokens_SNL: Any
    points_SP: Any
    length_SN: Any


STATES = ("final_states", "layers")
TARGETS = ("unembedding", "embedding", "parameters", *STATES)

# More matrices of one shape than this are measured in a loop, since compiling hundreds one by one takes minutes.
_MOST_ALONE = 8

# A function of a stack's parameters and the indices of its members in the cohort (None: all, in order).
Probe = Callable[..., dict[str, Array]]


def choose_documents(config: ProbeConfig, documents: Iterable[np.ndarray], bos: int) -> Documents:
    """Return the first documents of more than one token, dealt to the sets in turn and cut to `document_tokens`.

    They are the same for every run on the same data. If there are fewer than `config.sets` x `config.documents`, later
    pieces of the same documents are added; if these are still too few, the sets are smaller. With "all" tokens, every
    set has as many points as the smallest one. Raises ConfigError for fewer than two pieces per set.
    """
    total, length = config.sets * config.documents, config.document_tokens - 1
    selected = list(itertools.islice((d for d in documents if len(d) > 1), total))
    starts = range(0, max(map(len, selected), default=0), length)
    pieces = (d[start : start + length] for start in starts for d in selected if len(d) > start + 1)
    chosen = list(itertools.islice(pieces, total))
    per_set = len(chosen) // config.sets
    require(
        per_set > 1,
        "config.probe.sets",
        config.sets,
        f"needs two pieces of validation text in each set, and there are {len(chosen)}; add text, raise "
        "config.data.validation_fraction or lower config.probe.document_tokens",
    )
    tokens_SNL = np.full((config.sets, per_set, config.document_tokens), bos, np.int32)
    length_SN = np.zeros((config.sets, per_set), int)
    for i, document in enumerate(chosen[: per_set * config.sets]):
        index = i % config.sets, i // config.sets
        tokens_SNL[index][1 : 1 + len(document)] = document
        length_SN[index] = len(document)
    return Documents(tokens_SNL, _points(config, length_SN), length_SN)


def _points(config: ProbeConfig, length_SN: np.ndarray) -> np.ndarray:
    """Return the indices of the tokens to measure, without the BOS, whose state is the same in every document."""
    place_L = np.arange(config.document_tokens)
    start_N1 = config.document_tokens * np.arange(length_SN.shape[1])[:, None]
    if config.tokens == "last":
        return length_SN + start_N1[:, 0]
    all_S = [(start_N1 + place_L)[(place_L > 0) & (place_L <= length_N[:, None])] for length_N in length_SN]
    fewest = min(map(len, all_S))
    if config.tokens == "sampled":
        fewest = min(fewest, config.sampled_tokens)
        all_S = [np.sort(np.random.default_rng(0).permutation(places)[:fewest]) for places in all_S]
    return np.stack([places[:fewest] for places in all_S])


def check_probe(config: ProbeConfig, member: Any) -> None:
    """Raise ConfigError for an unknown metric, or a pattern that matches the path of no matrix in `member`."""
    for name in TARGETS:
        try:
            check_names(getattr(config, name).metrics)
        except ValueError as error:
            raise ConfigError(f"config.probe.{name}.metrics: {error}") from error
    if config.parameters.metrics:
        matrices = _matrices(member)
        require(
            any(re.search(config.parameters.pattern, path) for path in matrices),
            "config.probe.parameters.pattern",
            config.parameters.pattern,
            f"matches no matrix; the matrices are {', '.join(matrices)}",
        )


def most_directions(width: int, vocabulary: int, documents: Documents) -> int:
    """Return how many principal directions of states and unembedding can be compared (ProbeConfig.alignment)."""
    return min(width - 1, vocabulary, documents.points_SP.shape[1] - 1)


@dataclasses.dataclass(frozen=True)
class ProbeProgram:
    """The static settings of a probe's compiled program; equal ones share one program.

    Attributes:
      targets: the measured targets, by name. functions: those of all metrics, so that a redefined metric is compiled
        again. texts: whether evaluation sets are read. sharpness: whether it is measured. mapping, mesh, at_once: as in
        members.over_members.
    """

    config: ProbeConfig
    targets: tuple[tuple[str, TargetConfig], ...]
    functions: tuple[Metric, ...]
    texts: bool
    sharpness: bool
    architecture: ModelConfig
    vocabulary: int
    mapping: str
    mesh: Mesh | None
    at_once: int | None

    @property
    def reads_states(self) -> bool:
        """Return whether a target measures states on the probe's documents."""
        return any(name in STATES for name, _ in self.targets)


def make_probes(
    config: ProbeConfig,
    architecture: ModelConfig,
    vocabulary: int,
    documents: Documents | None,
    mapping: str = "auto",
    mesh: Mesh | None = None,
    evaluation_sets: Sequence[EvaluationSet] = (),
    at_once: int | None = None,
) -> dict[int, Probe]:
    """Return `{interval: probe}` with `probe(params_M, places=None) -> {"target/metric": [M]}`.

    Args:
      vocabulary: number of tokens of the tokenizer; later rows of embedding and unembedding are padding.
      documents: None if no target measures states.
      mapping, mesh: how members share the devices (members.over_members).
      evaluation_sets: those of config.texts.
      at_once: the maximum number of members that read them side by side; None: by memory.
    """
    if documents is not None:
        most = most_directions(architecture.d_model, vocabulary, documents)
        require(
            config.alignment <= most,
            "config.probe.alignment",
            config.alignment,
            f"needs at most {most}, by the width, the vocabulary and the states of a set of documents",
        )
    groups: dict[int, dict[str, TargetConfig]] = {}
    for name in TARGETS:
        target = getattr(config, name)
        if target.metrics and (interval := config.interval(target)):
            groups.setdefault(interval, {})[name] = target
    texts_interval = (config.texts.every or config.every) if evaluation_sets else 0
    if texts_interval:
        groups.setdefault(texts_interval, {})
    sharpness_interval = config.interval(config.sharpness) if config.measures_sharpness else 0
    if sharpness_interval:
        groups.setdefault(sharpness_interval, {})

    def probe_of(interval: int, group: dict[str, TargetConfig]) -> Probe:
        measured_sets = list(evaluation_sets) if interval == texts_interval else []
        names = {name for target in group.values() for name in target.metrics}
        names |= set(config.texts.metrics) if measured_sets else set()
        program = ProbeProgram(
            config,
            tuple(group.items()),
            tuple(METRICS[name] for name in sorted(names)),
            bool(measured_sets),
            interval == sharpness_interval,
            architecture,
            vocabulary,
            mapping,
            mesh,
            (at_once or members_at_once(config.texts, architecture, measured_sets)) if measured_sets else None,
        )
        read_documents = documents if program.reads_states or program.sharpness else None

        def probe(params_M: Any, places: Sequence[int] | None = None) -> dict[str, Array]:
            if places is None:
                places = range(len(jax.tree.leaves(params_M)[0]))
            counted_M = [evaluation_set.of(places) for evaluation_set in measured_sets]
            return _measure_members(program, params_M, read_documents, measured_sets, counted_M)

        return probe

    return {interval: probe_of(interval, group) for interval, group in sorted(groups.items())}


@functools.partial(jax.jit, static_argnames="program")
def _measure_members(
    program: ProbeProgram,
    params_M: Any,
    documents: Documents | None,
    evaluation_sets: list[EvaluationSet],
    counted_M: list[Any],
) -> dict[str, Array]:
    """Return `{"target/metric": [M]}` of a stack; `counted_M` holds what EvaluationSet.of returns for its members."""
    config, architecture, targets = program.config, program.architecture, dict(program.targets)

    def measure(params: Any, counted: list[Any]) -> dict[str, Array]:
        values = measure_parameters(config, targets, architecture, program.vocabulary, params)
        if program.reads_states and documents is not None:
            values |= measure_states(config, targets, architecture, program.vocabulary, documents, params)
        if program.sharpness and documents is not None:
            tokens_NL, length_N = jax.lax.collapse(documents.tokens_SNL, 0, 2), jnp.ravel(documents.length_SN)
            values |= measure_sharpness(config.sharpness, architecture, tokens_NL, length_N, params)
        for evaluation_set, (documents_KN, points_KT) in zip(evaluation_sets, counted, strict=True):
            values |= measure_texts(config.texts, architecture, evaluation_set, params, documents_KN, points_KT)
        return values

    return over_members(measure, program.mapping, program.mesh, program.at_once)(params_M, counted_M)


def measure_parameters(
    config: ProbeConfig, group: dict[str, TargetConfig], architecture: ModelConfig, vocabulary: int, params: Any
) -> dict[str, Array]:
    """Return metrics of one member's matrices, for the targets in `group`: float32 scalars by "target/metric".

    `unembedding_gauge_fixed` is W without the directions that don't affect the logits (methods.md section 2).
    """
    results: dict[str, Array] = {}
    for name in ("unembedding", "embedding"):
        if name in group:
            w_VD = (params["embedding"] if name == "embedding" else model.unembedding(params))[:vocabulary]
            results |= _measure(config, name, group[name], w_VD)
            if name == "unembedding":
                fixed_VD = gauge_fix(w_VD, architecture.norm)
                results |= _measure(config, f"{name}_gauge_fixed", group[name], fixed_VD, vary=False)
    if "parameters" in group:
        chosen = {path: x for path, x in _matrices(params).items() if re.search(config.parameters.pattern, path)}
        named = {path.replace("/", "."): matrix for path, matrix in chosen.items()}
        results |= _measure_alike(config, group["parameters"], named)
    return results


def _measure_alike(config: ProbeConfig, target: TargetConfig, named: Mapping[str, Array]) -> dict[str, Array]:
    """Return what `_measure` does of several matrices; many of one shape are measured by one compiled loop."""
    results: dict[str, Array] = {}
    shapes: dict[tuple[int, ...], list[str]] = {}
    for name, x in named.items():
        shapes.setdefault(x.shape, []).append(name)
    for names in shapes.values():
        if len(names) <= _MOST_ALONE:
            for name in names:
                results |= _measure(config, name, target, named[name])
            continue
        stacked = jnp.stack([named[name] for name in names])
        of_each = jax.lax.map(lambda x: _measure(config, "", target, x), stacked)
        results |= {f"{name}{key}": values[i] for key, values in of_each.items() for i, name in enumerate(names)}
    return results


def measure_states(
    config: ProbeConfig,
    group: dict[str, TargetConfig],
    architecture: ModelConfig,
    vocabulary: int,
    documents: Documents,
    params: Any,
) -> dict[str, Array]:
    """Return metrics of one member's states: the mean over the sets and, as `<target>_spread`, their SD.

    With config.alignment, `alignment/...` says how the final states are aligned with the unembedding.
    """

    def measure_set(batch: tuple[Array, Array]) -> dict[str, Array]:
        taken = take_states(config, group.keys(), architecture, batch, params)
        results: dict[str, Array] = {}
        if "final_states" in taken:
            final_PD = taken.pop("final_states")
            results |= _measure(config, "final_states", group["final_states"], final_PD)
            if config.alignment:
                results |= _alignment(config.alignment, final_PD, model.unembedding(params)[:vocabulary])
        return results | _measure_alike(config, group["layers"], taken) if taken else results

    # One set after another, so that the states of only one set are held.
    values_S = jax.lax.map(measure_set, (jnp.asarray(documents.tokens_SNL), jnp.asarray(documents.points_SP)))
    results = {name: jnp.mean(x_S) for name, x_S in values_S.items()}
    if config.sets > 1:
        for name, x_S in values_S.items():
            target, metric = name.split("/")
            if metric not in COUNTS:
                results[f"{target}_spread/{metric}"] = jnp.std(x_S, ddof=1)
    return results


def take_states(
    config: ProbeConfig, targets: Collection[str], architecture: ModelConfig, batch: tuple[Array, Array], params: Any
) -> dict[str, Array]:
    """Return one member's states of the measured tokens of a set of documents, `[P, D]` float32, by name.

    Args:
      targets: "final_states", "layers" or both. batch: the set's tokens_NL and points_P.
    """
    tokens_NL, points_P = batch
    last, spans = config.tokens == "last", None
    if last:  # so that the last block computes the state of one token only
        tokens_NL, spans = _align_right(tokens_NL, points_P)
    hidden = model.hidden(architecture, params, tokens_NL, layers="layers" in targets, last=last, spans=spans)
    states = {"final_states": hidden.final_BLD} if "final_states" in targets else {}
    states |= {f"layer_{i}": layer_BLD for i, layer_BLD in enumerate(hidden.layers)}
    return {
        name: (x_NLD[:, -1] if last else x_NLD.reshape(-1, x_NLD.shape[-1])[points_P]).astype(jnp.float32)
        for name, x_NLD in states.items()
    }


def _alignment(directions: int, final_PD: Array, w_VD: Array) -> dict[str, Array]:
    overlap, z_score = principal_alignment(final_PD, w_VD, directions)
    ratio = log_alignment_ratio(w_VD, final_PD)
    return {"alignment/principal": overlap, "alignment/principal_z": z_score, "alignment/log_ratio": ratio}


def _align_right(tokens_NL: Array, points_N: Array) -> tuple[Array, Spans]:
    """Return the documents shifted to end in the last column, and what their tokens attend to.

    The padding then comes first, and attends only to padding.
    """
    place_L = jnp.arange(tokens_NL.shape[1])
    padding_N1 = (tokens_NL.shape[1] - 1 - points_N % tokens_NL.shape[1])[:, None]
    shifted_NL = jnp.take_along_axis(tokens_NL, (place_L[None] - padding_N1) % tokens_NL.shape[1], axis=1)
    start_NL = jnp.where(place_L[None] < padding_N1, 0, padding_N1)
    zero_NL = jnp.zeros_like(start_NL)
    return shifted_NL, Spans(zero_NL, zero_NL, start_NL)


def _measure(config: ProbeConfig, name: str, target: TargetConfig, x_ND: Array, vary: bool = True) -> dict[str, Array]:
    variants = {name: x_ND} | ({f"{name}_centred": centred(x_ND)} if target.centred and vary else {})
    places = [place for place in SPECTRUM_PLACES if target.spectrum and place <= min(x_ND.shape)]
    results: dict[str, Array] = {}
    for variant, matrix in variants.items():
        values = summarize(matrix, target.metrics, config.neighbors, places)
        results |= {f"{variant}/{metric}": values[metric] for metric in target.metrics}
        results |= {f"{variant}_spectrum/{place}": values[f"singular_value_{place}"] for place in places}
    return results


def _matrices(params: Any) -> dict[str, Any]:
    """Return a member's matrices by path, such as blocks_0/mlp/up."""
    leaves: Sequence[Any] = jax.tree_util.tree_leaves_with_path(params)
    return {sharding.path_name(path): leaf for path, leaf in leaves if len(leaf.shape) == 2}
