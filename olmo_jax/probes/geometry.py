"""Geometry of a member while it trains: of its matrices, and of its states on fixed documents.

What is measured is configuration (ProbeConfig). The targets of one interval are one compiled program.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from geometry.gauge import centred, gauge_fix
from geometry.probe import COUNTS, METRICS, SPECTRUM_PLACES, Metric, check_names, summarize
from olmo_jax import model
from olmo_jax.config import ConfigError, ModelConfig, ProbeConfig, TargetConfig, require
from olmo_jax.execution import sharding
from olmo_jax.execution.attention import Spans
from olmo_jax.execution.members import over_members
from olmo_jax.probes.texts import EvaluationSet, measure_texts, members_at_once


class Documents(NamedTuple):
    """S disjoint sets of N fixed documents after a BOS, padded on the right, and the P tokens that count in each set.

    tokens_SNL; points_SP are places in a set's N x L tokens, row by row.
    """

    tokens_SNL: Any
    points_SP: Any


STATES = ("final_states", "layers")
TARGETS = ("unembedding", "embedding", "parameters", *STATES)

# Of a stack, from its parameters and the places of its members in the cohort; None: all, in order.
Probe = Callable[..., dict[str, Array]]


def choose_documents(config: ProbeConfig, documents: Iterable[np.ndarray], bos: int) -> Documents:
    """The first documents of more than one token, dealt to the sets in turn, each cut to `config.document_tokens`.

    The same for every run of a data set. Where there are fewer than `config.sets` x `config.documents`, further pieces
    of the same documents follow, and where these are too few as well the sets are smaller; with "all" tokens each set
    gives as many as the one that has fewest. Raises ConfigError for fewer than two in a set.
    """
    wanted, length = config.sets * config.documents, config.document_tokens - 1
    whole = list(itertools.islice((d for d in documents if len(d) > 1), wanted))
    starts = range(0, max(map(len, whole), default=0), length)
    pieces = (d[start : start + length] for start in starts for d in whole if len(d) > start + 1)
    chosen = list(itertools.islice(pieces, wanted))
    each = len(chosen) // config.sets
    require(
        each > 1,
        "config.probe.sets",
        config.sets,
        f"needs two pieces of validation text in each set, and there are {len(chosen)}; add text, raise "
        "config.data.validation_fraction or lower config.probe.document_tokens",
    )
    tokens_SNL = np.full((config.sets, each, config.document_tokens), bos, np.int32)
    length_SN = np.zeros((config.sets, each), int)
    for i, document in enumerate(chosen[: each * config.sets]):
        place = i % config.sets, i // config.sets
        tokens_SNL[place][1 : 1 + len(document)] = document
        length_SN[place] = len(document)
    return Documents(tokens_SNL, _points(config, length_SN))


def _points(config: ProbeConfig, length_SN: np.ndarray) -> np.ndarray:
    """Places of the tokens that count; the BOS doesn't, whose state is the same in every document."""
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
    """Raises ConfigError for a metric that isn't registered and a pattern that is in no matrix's path in `member`."""
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
            f"is in no path of a matrix; there are {', '.join(matrices)}",
        )


@dataclasses.dataclass(frozen=True)
class ProbeProgram:
    """What a probe's compiled program is made from beside its arguments; equal ones share one program.

    Attributes:
      targets: those that are measured, by name. functions: of all their metrics, so that one defined anew is compiled
        anew. texts: whether passages are read. mapping, mesh, at_once: of the members (members.over_members).
    """

    config: ProbeConfig
    targets: tuple[tuple[str, TargetConfig], ...]
    functions: tuple[Metric, ...]
    texts: bool
    architecture: ModelConfig
    vocabulary: int
    mapping: str
    mesh: Mesh | None
    at_once: int | None

    @property
    def reads_states(self) -> bool:
        """Whether a target is measured of states on the probe's documents."""
        return any(name in STATES for name, _ in self.targets)


def make_probes(
    config: ProbeConfig,
    architecture: ModelConfig,
    vocabulary: int,
    documents: Documents | None,
    mapping: str = "auto",
    mesh: Mesh | None = None,
    passages: Sequence[EvaluationSet] = (),
    at_once: int | None = None,
) -> dict[int, Probe]:
    """`{interval: probe}` with `probe(params_M, places=None) -> {"target/metric": [M]}`, one program an interval.

    Args:
      vocabulary: tokens of the tokenizer; rows beyond pad the embedding and the unembedding.
      documents: None where no target reads states.
      mapping, mesh: how members go through the devices (members.over_members).
      passages: that config.texts names. at_once: bounds how many members read them side by side; None: by memory.
    """
    groups: dict[int, dict[str, TargetConfig]] = {}
    for name in TARGETS:
        target = getattr(config, name)
        if target.metrics and (interval := config.interval(target)):
            groups.setdefault(interval, {})[name] = target
    reading = (config.texts.every or config.every) if passages else 0
    if reading:
        groups.setdefault(reading, {})

    def probe_of(interval: int, group: dict[str, TargetConfig]) -> Probe:
        read = list(passages) if interval == reading else []
        names = {name for target in group.values() for name in target.metrics}
        names |= set(config.texts.metrics) if read else set()
        program = ProbeProgram(
            config,
            tuple(group.items()),
            tuple(METRICS[name] for name in sorted(names)),
            bool(read),
            architecture,
            vocabulary,
            mapping,
            mesh,
            (at_once or members_at_once(config.texts, architecture, read)) if read else None,
        )
        of_states = documents if program.reads_states else None

        def probe(params_M: Any, places: Sequence[int] | None = None) -> dict[str, Array]:
            if places is None:
                places = range(len(jax.tree.leaves(params_M)[0]))
            return _measure_members(program, params_M, of_states, read, [passage.of(places) for passage in read])

        return probe

    return {interval: probe_of(interval, group) for interval, group in sorted(groups.items())}


@functools.partial(jax.jit, static_argnames="program")
def _measure_members(
    program: ProbeProgram,
    params_M: Any,
    documents: Documents | None,
    passages: list[EvaluationSet],
    counted_M: list[Any],
) -> dict[str, Array]:
    """`{"target/metric": [M]}` of a stack; `counted_M` says what counts for each member (EvaluationSet.of)."""
    config, architecture, targets = program.config, program.architecture, dict(program.targets)

    def measure(params: Any, counted: list[Any]) -> dict[str, Array]:
        values = measure_parameters(config, targets, architecture, program.vocabulary, params)
        if documents is not None:
            values |= measure_states(config, targets, architecture, documents, params)
        for passage, (documents_KN, points_KT) in zip(passages, counted, strict=True):
            values |= measure_texts(config.texts, architecture, passage, params, documents_KN, points_KT)
        return values

    return over_members(measure, program.mapping, program.mesh, program.at_once)(params_M, counted_M)


def measure_parameters(
    config: ProbeConfig, group: dict[str, TargetConfig], architecture: ModelConfig, vocabulary: int, params: Any
) -> dict[str, Array]:
    """Metrics of one member's matrices, float32 scalars by "target/metric"; of the targets in `group` that are such.

    `unembedding_gauge_fixed` is W without what the logits can't see behind the model's norm (methods.md section 2).
    """
    found: dict[str, Array] = {}
    for name in ("unembedding", "embedding"):
        if name in group:
            w_VD = (params["embedding"] if name == "embedding" else model.unembedding(params))[:vocabulary]
            found |= _measure(config, name, group[name], w_VD)
            if name == "unembedding":
                fixed_VD = gauge_fix(w_VD, architecture.norm)
                found |= _measure(config, f"{name}_gauge_fixed", group[name], fixed_VD, vary=False)
    if "parameters" in group:
        for path, matrix in _matrices(params).items():
            if re.search(config.parameters.pattern, path):
                found |= _measure(config, path.replace("/", "."), group["parameters"], matrix)
    return found


def measure_states(
    config: ProbeConfig, group: dict[str, TargetConfig], architecture: ModelConfig, documents: Documents, params: Any
) -> dict[str, Array]:
    """Metrics of one member's states: the mean over the sets and, as `<target>_spread`, the standard deviation."""

    last = config.tokens == "last"

    def measure_set(batch: tuple[Array, Array]) -> dict[str, Array]:
        tokens_NL, points_P = batch
        spans = None
        if last:  # the last block then reads every token and computes the state of one
            tokens_NL, spans = _ending_together(tokens_NL, points_P)
        hidden = model.hidden(architecture, params, tokens_NL, layers="layers" in group, last=last, spans=spans)
        states = {"final_states": hidden.final_BLD} if "final_states" in group else {}
        states |= {f"layer_{i}": layer_BLD for i, layer_BLD in enumerate(hidden.layers)}
        found: dict[str, Array] = {}
        for name, x_NLD in states.items():
            h_PD = x_NLD[:, -1] if last else x_NLD.reshape(-1, x_NLD.shape[-1])[points_P]
            target = group["final_states" if name == "final_states" else "layers"]
            found |= _measure(config, name, target, h_PD.astype(jnp.float32))
        return found

    # One set after another: of the states of all layers only one set's are held.
    values_S = jax.lax.map(measure_set, (jnp.asarray(documents.tokens_SNL), jnp.asarray(documents.points_SP)))
    found = {name: jnp.mean(x_S) for name, x_S in values_S.items()}
    if config.sets > 1:
        for name, x_S in values_S.items():
            target, metric = name.split("/")
            if metric not in COUNTS:
                found[f"{target}_spread/{metric}"] = jnp.std(x_S, ddof=1)
    return found


def _ending_together(tokens_NL: Array, points_N: Array) -> tuple[Array, Spans]:
    """Documents moved to the right, so that each ends in the last column, and what their tokens attend to.

    What pads them comes first and attends to itself alone.
    """
    place_L = jnp.arange(tokens_NL.shape[1])
    padding_N1 = (tokens_NL.shape[1] - 1 - points_N % tokens_NL.shape[1])[:, None]
    moved_NL = jnp.take_along_axis(tokens_NL, (place_L[None] - padding_N1) % tokens_NL.shape[1], axis=1)
    start_NL = jnp.where(place_L[None] < padding_N1, 0, padding_N1)
    nothing_NL = jnp.zeros_like(start_NL)
    return moved_NL, Spans(nothing_NL, nothing_NL, start_NL)


def _measure(config: ProbeConfig, name: str, target: TargetConfig, x_ND: Array, vary: bool = True) -> dict[str, Array]:
    variants = {name: x_ND} | ({f"{name}_centred": centred(x_ND)} if target.centred and vary else {})
    places = [place for place in SPECTRUM_PLACES if target.spectrum and place <= min(x_ND.shape)]
    found: dict[str, Array] = {}
    for variant, matrix in variants.items():
        values = summarize(matrix, target.metrics, config.neighbors, places)
        found |= {f"{variant}/{metric}": values[metric] for metric in target.metrics}
        found |= {f"{variant}_spectrum/{place}": values[f"singular_value_{place}"] for place in places}
    return found


def _matrices(params: Any) -> dict[str, Any]:
    """A member's matrices by path, such as blocks_0/mlp/up."""
    leaves: Sequence[Any] = jax.tree_util.tree_leaves_with_path(params)
    return {sharding.path_name(path): leaf for path, leaf in leaves if len(leaf.shape) == 2}
