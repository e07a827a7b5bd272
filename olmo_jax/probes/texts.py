"""Measure a member on named texts during training: its loss, its accuracy, and the geometry of its states.

An evaluation set holds documents that are read together; a text is the part of them that counts, which for equations
differs between members. The metrics are `texts.<text>/loss`, `texts.<text>/accuracy` and `<states>.<text>/<metric>`.

Shapes: N documents of L tokens, K texts of an evaluation set, T drawn tokens, M members.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from geometry.dimension import MAX_ELEMENTS, first_distinct
from geometry.probe import check_names, summarize
from olmo_jax import loss, model
from olmo_jax.config import ConfigError, ModelConfig, TextsConfig, TrainConfig, require
from olmo_jax.data.shards import TokenIndex
from olmo_jax.data.sources import arithmetic
from olmo_jax.data.windows import evaluation_windows

_TOKENS_AT_ONCE = 2**14
# Memory of a device that members measured side by side may use together.
_MAX_BYTES = 4e9
_DRAWING_METRICS = ("points", "duplicates")


@functools.partial(
    jax.tree_util.register_dataclass,
    meta_fields=("names", "scored_places"),
    data_fields=("inputs_NL", "targets_NL", "scored_NL", "documents_MKN", "points_MKT"),
)
@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationSet:
    """Documents read together, and which of them count for each text and member; an argument of compiled programs.

    Attributes:
      names: of the K texts. scored_places: positions, 0 to L - 1, at which a prediction of any document counts.
      inputs_NL, targets_NL: tokens, and the tokens that follow them. scored_NL: whether each prediction counts.
      documents_MKN: whether a document's loss counts. points_MKT: indices into the flattened N x L tokens of those
        whose states are measured. An M of 1 applies to all members.
    """

    names: tuple[str, ...]
    scored_places: tuple[int, ...]
    inputs_NL: Any
    targets_NL: Any
    scored_NL: Any
    documents_MKN: Any
    points_MKT: Any

    def of(self, places: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return `documents_MKN` and `points_MKT` of the members with these indices."""

        def rows(x_M: np.ndarray) -> np.ndarray:
            return x_M[np.asarray(places)] if len(x_M) > 1 else np.repeat(x_M, len(places), axis=0)

        return rows(self.documents_MKN), rows(self.points_MKT)


def check_texts(config: TextsConfig, architecture: ModelConfig) -> None:
    """Raise ConfigError for an unknown metric, or for states that the model doesn't have."""
    try:
        check_names(config.metrics)
    except ValueError as error:
        raise ConfigError(f"config.probe.texts.metrics: {error}") from error
    known = ("final_states", *(f"layer_{i}" for i in range(architecture.n_layers)))
    for name in config.states:
        require(
            name in known,
            "config.probe.texts.states",
            config.states,
            f"the model has no {name!r}; its {architecture.n_layers} blocks are layer_0 to {known[-1]}, and "
            "final_states are those after the final norm",
        )


def evaluation_sets(configs: Sequence[TrainConfig], index: TokenIndex) -> list[EvaluationSet]:
    """Return the evaluation sets of a cohort, as configured in config.probe.texts; [] if it names no text.

    Raises ConfigError for an unknown text, and for a text with fewer tokens than are to be measured.
    """
    config, data = configs[0].probe.texts, configs[0].data
    if not config.names:
        return []
    if data.is_arithmetic:
        return [_equations(configs)]
    return text_sets(config, texts_by_name(config, index, data.train_domains, data.train_domains), index.eos_id)


def texts_by_name(
    config: TextsConfig, index: TokenIndex, train: Sequence[str], validation: Sequence[str]
) -> dict[str, Iterable[np.ndarray]]:
    """Return the documents of each name in config.names; `train` and `validation` are their domains, () for all."""
    results: dict[str, Iterable[np.ndarray]] = {}
    for name in config.names:
        known = ", ".join(("train", "validation", *index.domains))
        require(
            name in ("train", "validation") or name in index.domains,
            "config.probe.texts.names",
            config.names,
            f"there is no text {name!r}; the texts are {known}",
        )
        split = "train" if name == "train" else "validation"
        chosen = {"train": train, "validation": validation}.get(name, (name,)) or index.domains
        results[name] = _in_turn([index.documents(split, domain) for domain in chosen])
    return results


def text_sets(config: TextsConfig, texts: Mapping[str, Iterable[np.ndarray]], bos: int) -> list[EvaluationSet]:
    """Return one evaluation set per text, with its first documents of more than one token.

    Raises ConfigError for a text that is too short.
    """
    results = []
    for name, documents in texts.items():
        eligible = (d[: config.document_tokens] for d in documents if len(d) > 1)
        chosen = list(itertools.islice(eligible, config.documents))
        require(
            bool(chosen),
            "config.probe.texts.names",
            config.names,
            f"the text {name!r} has no document; choose another, add text, or raise config.data.validation_fraction",
        )
        results.append(_text_evaluation_set(config, name, chosen, bos))
    return results


def _text_evaluation_set(config: TextsConfig, name: str, documents: Sequence[np.ndarray], bos: int) -> EvaluationSet:
    windows = evaluation_windows(documents, bos, config.document_tokens)
    tokens_Nl = np.concatenate([windows.inputs_NL, windows.targets_NL[:, -1:]], axis=1)
    tokens_Nl[:, 1:] = windows.targets_NL
    return scored_set(config, name, tokens_Nl, windows.weights_NL > 0)


def scored_set(config: TextsConfig, name: str, tokens_Nl: np.ndarray, scored_NL: np.ndarray) -> EvaluationSet:
    """Return the evaluation set of one text, the same for all members.

    Args:
      tokens_Nl: `[N, L + 1]`, padded on the right. scored_NL: which of the L predictions count, at least one per
        document; tokens after the last one predicted aren't measured.
    """
    length = scored_NL.shape[1]
    place_L = np.arange(length)
    # The last predicted token has a state too, if it is within the L inputs.
    last_N1 = np.minimum(length - np.argmax(scored_NL[:, ::-1], axis=1), length - 1)[:, None]
    read_NL = place_L == last_N1 if config.tokens == "last" else place_L <= last_N1
    points_T = _drawn(config, np.flatnonzero(read_NL))
    _check_points(config, name, _beginnings(tokens_Nl[:, :-1]), points_T)
    all_documents = np.ones((1, 1, len(tokens_Nl)), bool)
    return _make_evaluation_set((name,), tokens_Nl, scored_NL, all_documents, points_T[None, None])


def _equations(configs: Sequence[TrainConfig]) -> EvaluationSet:
    """Return the evaluation set of all equations; every member has its own split into train and validation."""
    config, operation = configs[0].probe.texts, configs[0].data.arithmetic
    for name in config.names:
        require(
            name in ("train", "validation"),
            "config.probe.texts.names",
            config.names,
            f"equations have no text {name!r}, only train and validation",
        )
    tokens_NL = arithmetic.equations(operation)
    length = arithmetic.LENGTH - 1
    scored_NL = np.broadcast_to(np.arange(length) == length - 1, (len(tokens_NL), length))
    place_L = np.arange(length)[-1:] if config.tokens == "last" else np.arange(length)
    splits = [arithmetic.split(member.data.arithmetic, member.data_seed)._asdict() for member in configs]
    documents_MKN = np.zeros((len(configs), len(config.names), len(tokens_NL)), bool)
    points = []
    for m, split in enumerate(splits):
        for k, name in enumerate(config.names):
            documents_MKN[m, k, split[name]] = True
            points.append(_drawn(config, (split[name][:, None] * length + place_L).ravel()))
    fewest = min(map(len, points))
    points_MKT = np.array([points_T[:fewest] for points_T in points]).reshape(len(configs), len(config.names), -1)
    beginnings_NL = _beginnings(tokens_NL[:, :-1])
    for member, points_KT in zip(configs, points_MKT, strict=True):
        share = f"config.data.arithmetic.train_fraction = {member.data.arithmetic.train_fraction:g}"
        for name, points_T in zip(config.names, points_KT, strict=True):
            _check_points(config, f"{name} ({share})", beginnings_NL, points_T)
    return _make_evaluation_set(config.names, tokens_NL, scored_NL, documents_MKN, points_MKT)


def _make_evaluation_set(
    names: tuple[str, ...],
    tokens_Nl: np.ndarray,
    scored_NL: np.ndarray,
    documents_MKN: np.ndarray,
    points_MKT: np.ndarray,
) -> EvaluationSet:
    places = tuple(np.flatnonzero(scored_NL.any(axis=0)).tolist())
    return EvaluationSet(names, places, tokens_Nl[:, :-1], tokens_Nl[:, 1:], scored_NL, documents_MKN, points_MKT)


def _drawn(config: TextsConfig, places: np.ndarray) -> np.ndarray:
    """Return `config.drawn` of the token indices in `places` (0: all), in a fixed random order."""
    return np.random.default_rng(0).permutation(places)[: config.drawn or None].astype(np.int32)


def _check_points(config: TextsConfig, name: str, beginnings_NL: np.ndarray, points_T: np.ndarray) -> None:
    """Raise ConfigError if fewer than config.points tokens can have distinct states, which need distinct contexts."""
    if not config.metrics:
        return
    distinct = len(np.unique(beginnings_NL.ravel()[points_T]))
    require(
        distinct >= config.points,
        "config.probe.texts.points",
        config.points,
        f"the text {name} gives {len(points_T)} tokens, of which only {distinct} have distinct contexts, and so "
        "distinct states; lower it, or raise config.probe.texts.documents or drawn",
    )


def _beginnings(tokens_NL: np.ndarray) -> np.ndarray:
    """Return one number per token, `[N, L]`, equal for tokens whose documents agree up to and including them."""
    numbers, before_N = [], np.zeros(len(tokens_NL), np.int64)
    count, vocabulary = 0, int(tokens_NL.max(initial=0)) + 1
    for tokens_N in tokens_NL.T:
        _, before_N = np.unique(before_N * vocabulary + tokens_N, return_inverse=True)
        numbers.append(before_N + count)
        count += before_N.max(initial=-1) + 1
    return np.stack(numbers, axis=1)


def _in_turn(streams: Sequence[Iterator[np.ndarray]]) -> Iterator[np.ndarray]:
    """Yield one document of each stream in turn until all are exhausted."""
    remaining = list(streams)
    while remaining:
        for stream in tuple(remaining):
            document = next(stream, None)
            if document is None:
                remaining.remove(stream)
            else:
                yield document


def measure_texts(
    config: TextsConfig,
    architecture: ModelConfig,
    evaluation_set: EvaluationSet,
    params: Any,
    documents_KN: Array,
    points_KT: Array,
) -> dict[str, Array]:
    """Return the metrics of one member on one evaluation set: float32 scalars by "target/metric"."""
    read = _read(config, architecture, evaluation_set, params, points_KT)
    results: dict[str, Array] = {}
    for k, name in enumerate(evaluation_set.names):
        counted_NL = documents_KN[k][:, None] * evaluation_set.scored_NL
        total = jnp.maximum(jnp.sum(counted_NL), 1)
        results[f"texts.{name}/loss"] = jnp.sum(read.loss_NL * counted_NL) / total
        results[f"texts.{name}/accuracy"] = jnp.sum(read.right_NL * counted_NL) / total
        for source, states_KTD in read.states.items():
            measured = states_geometry(config, states_KTD[k])
            results |= {f"{source}.{name}/{metric}": value for metric, value in measured.items()}
    return results


def states_geometry(config: TextsConfig, states_TD: Array) -> dict[str, Array]:
    """Return metrics of the first `config.points` distinct states; "duplicates" and "points" count dropped and kept."""
    x_ND, distinct = first_distinct(states_TD, config.points)
    values = summarize(x_ND, [m for m in config.metrics if m not in _DRAWING_METRICS], config.neighbors)
    values["points"] = jnp.minimum(distinct, len(x_ND)).astype(jnp.float32)
    values["duplicates"] = (len(states_TD) - distinct).astype(jnp.float32)
    return {metric: values[metric] for metric in config.metrics}


def read_states(
    config: TextsConfig, architecture: ModelConfig, evaluation_set: EvaluationSet, params: Any, points_KT: Array
) -> dict[str, Array]:
    """Return one member's states `[K, T, D]` of the drawn tokens, in the order drawn, by the names in config.states."""
    return _read(config, architecture, evaluation_set, params, points_KT).states


def members_at_once(config: TextsConfig, architecture: ModelConfig, evaluation_sets: Sequence[EvaluationSet]) -> int:
    """Return how many members a device measures side by side.

    It follows from the approximate memory of one member: states, neighbourhoods, and a batch of documents.
    """
    width = architecture.d_model
    drawn = max(p.points_MKT.shape[1] * p.points_MKT.shape[2] for p in evaluation_sets) * width * len(config.states)
    neighbourhoods = MAX_ELEMENTS * 3 + config.points * config.neighbors * 4
    batch = _TOKENS_AT_ONCE * (8 * width + 3 * architecture.d_ff + width * architecture.n_layers)
    return int(max(1, _MAX_BYTES // (4.0 * (3 * drawn + neighbourhoods + batch))))


class _Reading(NamedTuple):
    loss_NL: Array
    right_NL: Array
    states: dict[str, Array]  # [K, T, D] by name


def _read(
    config: TextsConfig, architecture: ModelConfig, evaluation_set: EvaluationSet, params: Any, points_KT: Array
) -> _Reading:
    """Read the evaluation set, some documents at a time, and keep only the states of drawn tokens."""
    count, length = evaluation_set.inputs_NL.shape
    size = min(count, max(1, _TOKENS_AT_ONCE // length))
    batches = -(-count // size)
    state_names = config.states if config.metrics else ()
    w_VD = model.unembedding(params)
    # If only one position is predicted, as in equations, the logits of the others aren't computed.
    columns_L = np.array(evaluation_set.scored_places)

    def split(x_NL: Any) -> Array:
        return jnp.pad(x_NL, [(0, batches * size - count), (0, 0)]).reshape(batches, size, length)

    def read(states: dict[str, Array], batch: tuple[Array, Array, Array]) -> tuple[dict[str, Array], Any]:
        i, inputs_BL, targets_BL = batch
        last = not state_names and list(columns_L) == [length - 1]
        layers = any(name != "final_states" for name in state_names)
        hidden = model.hidden(architecture, params, inputs_BL, layers=layers, last=last)
        states_by_name = {f"layer_{j}": x_BLD for j, x_BLD in enumerate(hidden.layers)} | {
            "final_states": hidden.final_BLD
        }
        place_KT = points_KT - i * size * length
        in_batch_KT = (place_KT >= 0) & (place_KT < size * length)
        place_KT = jnp.clip(place_KT, 0, size * length - 1)
        for name in state_names:
            flat = states_by_name[name].reshape(-1, architecture.d_model).astype(jnp.float32)
            states[name] = jnp.where(in_batch_KT[..., None], flat[place_KT], states[name])
        final_BCD = hidden.final_BLD if last else hidden.final_BLD[:, columns_L]
        scores = loss.token_scores(final_BCD, w_VD, targets_BL[:, columns_L])
        return states, scores

    zero_KTD = jnp.zeros((*points_KT.shape, architecture.d_model), jnp.float32)
    states, (loss_bBC, right_bBC) = jax.lax.scan(
        read,
        dict.fromkeys(state_names, zero_KTD),
        (jnp.arange(batches), split(evaluation_set.inputs_NL), split(evaluation_set.targets_NL)),
    )

    def merge(x_bBC: Array) -> Array:
        x_NC = x_bBC.reshape(batches * size, -1)[:count]
        return jnp.zeros((count, length), jnp.float32).at[:, columns_L].set(x_NC)

    return _Reading(merge(loss_bBC), merge(right_bBC), states)
