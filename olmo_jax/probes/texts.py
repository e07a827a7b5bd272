"""What a member makes of named texts while it trains: its loss, its accuracy, and the geometry of its states.

A passage is a set of documents that is read at once; a text is what of a passage counts, which for equations is another
part for each member. Measured are `texts.<text>/loss`, `texts.<text>/accuracy` and `<states>.<text>/<metric>`.

Shapes: N documents of L tokens, K texts of a passage, T drawn tokens, M members.
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
# That members measured side by side may hold of a device together.
_MOST_BYTES = 4e9
_OF_DRAWING = ("points", "duplicates")


@functools.partial(
    jax.tree_util.register_dataclass,
    meta_fields=("names", "scored_places"),
    data_fields=("inputs_NL", "targets_NL", "scored_NL", "documents_MKN", "points_MKT"),
)
@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationSet:
    """Documents read at once, and what of them counts for each text and member; an argument of compiled programs.

    Attributes:
      names: of the K texts. scored_places: those of 0 to L - 1 at which a prediction of any document counts.
      inputs_NL, targets_NL: tokens, and those that follow. scored_NL: which predictions count.
      documents_MKN: whose loss counts. points_MKT: places in N x L of the tokens whose states are measured. An M of 1
        stands for any number of members.
    """

    names: tuple[str, ...]
    scored_places: tuple[int, ...]
    inputs_NL: Any
    targets_NL: Any
    scored_NL: Any
    documents_MKN: Any
    points_MKT: Any

    def of(self, places: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """`documents_MKN` and `points_MKT` of the members at these places."""

        def rows(x_M: np.ndarray) -> np.ndarray:
            return x_M[np.asarray(places)] if len(x_M) > 1 else np.repeat(x_M, len(places), axis=0)

        return rows(self.documents_MKN), rows(self.points_MKT)


def check_texts(config: TextsConfig, architecture: ModelConfig) -> None:
    """Raises ConfigError for a metric that isn't registered and for states that the model doesn't have."""
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


def passages(configs: Sequence[TrainConfig], index: TokenIndex) -> list[EvaluationSet]:
    """What the members of a cohort read, as config.probe.texts says; [] where it names no text.

    Raises ConfigError for a text that isn't there, and for one with fewer tokens than are to be measured.
    """
    config, data = configs[0].probe.texts, configs[0].data
    if not config.names:
        return []
    if data.is_arithmetic:
        return [_equations(configs)]
    return text_passages(config, texts_by_name(config, index, data.train_domains, data.train_domains), index.eos_id)


def texts_by_name(
    config: TextsConfig, index: TokenIndex, train: Sequence[str], validation: Sequence[str]
) -> dict[str, Iterable[np.ndarray]]:
    """The documents that config.names stand for, "train" and "validation" being of these domains, () all of them."""
    found: dict[str, Iterable[np.ndarray]] = {}
    for name in config.names:
        known = ", ".join(("train", "validation", *index.domains))
        require(
            name in ("train", "validation") or name in index.domains,
            "config.probe.texts.names",
            config.names,
            f"there is no text {name!r}; there are {known}",
        )
        split = "train" if name == "train" else "validation"
        chosen = {"train": train, "validation": validation}.get(name, (name,)) or index.domains
        found[name] = _in_turn([index.documents(split, domain) for domain in chosen])
    return found


def text_passages(config: TextsConfig, texts: Mapping[str, Iterable[np.ndarray]], bos: int) -> list[EvaluationSet]:
    """A passage a text, of its first documents of more than one token. Raises ConfigError for one that is too short."""
    found = []
    for name, documents in texts.items():
        several = (d[: config.document_tokens] for d in documents if len(d) > 1)
        chosen = list(itertools.islice(several, config.documents))
        require(
            bool(chosen),
            "config.probe.texts.names",
            config.names,
            f"the text {name!r} has no document; take another, add text, or raise config.data.validation_fraction",
        )
        found.append(_passage(config, name, chosen, bos))
    return found


def _passage(config: TextsConfig, name: str, documents: Sequence[np.ndarray], bos: int) -> EvaluationSet:
    windows = evaluation_windows(documents, bos, config.document_tokens)
    tokens_Nl = np.concatenate([windows.inputs_NL, windows.targets_NL[:, -1:]], axis=1)
    tokens_Nl[:, 1:] = windows.targets_NL
    return scored_passage(config, name, tokens_Nl, windows.weights_NL > 0)


def scored_passage(config: TextsConfig, name: str, tokens_Nl: np.ndarray, scored_NL: np.ndarray) -> EvaluationSet:
    """A passage of one text, the same for all members.

    Args:
      tokens_Nl: `[N, L + 1]`, padded on the right. scored_NL: which of the L predictions count, at least one of each
        document; what comes after the token that is predicted last isn't read.
    """
    length = scored_NL.shape[1]
    place_L = np.arange(length)
    # The token that is predicted last has a state too, where there is room for it.
    last_N1 = np.minimum(length - np.argmax(scored_NL[:, ::-1], axis=1), length - 1)[:, None]
    read_NL = place_L == last_N1 if config.tokens == "last" else place_L <= last_N1
    points_T = _drawn(config, np.flatnonzero(read_NL))
    _check_points(config, name, _beginnings(tokens_Nl[:, :-1]), points_T)
    everything = np.ones((1, 1, len(tokens_Nl)), bool)
    return _laid_out((name,), tokens_Nl, scored_NL, everything, points_T[None, None])


def _equations(configs: Sequence[TrainConfig]) -> EvaluationSet:
    """All equations, of which each member's train and validation are its own."""
    config, of = configs[0].probe.texts, configs[0].data.arithmetic
    for name in config.names:
        require(
            name in ("train", "validation"),
            "config.probe.texts.names",
            config.names,
            f"of equations there is no text {name!r}, only train and validation",
        )
    tokens_NL = arithmetic.equations(of)
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
    return _laid_out(config.names, tokens_NL, scored_NL, documents_MKN, points_MKT)


def _laid_out(
    names: tuple[str, ...],
    tokens_Nl: np.ndarray,
    scored_NL: np.ndarray,
    documents_MKN: np.ndarray,
    points_MKT: np.ndarray,
) -> EvaluationSet:
    places = tuple(np.flatnonzero(scored_NL.any(axis=0)).tolist())
    return EvaluationSet(names, places, tokens_Nl[:, :-1], tokens_Nl[:, 1:], scored_NL, documents_MKN, points_MKT)


def _drawn(config: TextsConfig, places: np.ndarray) -> np.ndarray:
    """So many of the tokens at these places, in a random order, always the same."""
    return np.random.default_rng(0).permutation(places)[: config.drawn or None].astype(np.int32)


def _check_points(config: TextsConfig, name: str, beginnings_NL: np.ndarray, points_T: np.ndarray) -> None:
    """Raises ConfigError for fewer than config.points that can have states of their own: equal beginnings don't."""
    if not config.metrics:
        return
    distinct = len(np.unique(beginnings_NL.ravel()[points_T]))
    require(
        distinct >= config.points,
        "config.probe.texts.points",
        config.points,
        f"of the text {name} {len(points_T)} tokens are drawn, {distinct} of them with beginnings, and so states, that "
        "differ; lower it, or raise config.probe.texts.documents or drawn",
    )


def _beginnings(tokens_NL: np.ndarray) -> np.ndarray:
    """A number for each token, the same where all tokens up to it are: `[N, L]`."""
    numbers, before_N = [], np.zeros(len(tokens_NL), np.int64)
    count, vocabulary = 0, int(tokens_NL.max(initial=0)) + 1
    for tokens_N in tokens_NL.T:
        _, before_N = np.unique(before_N * vocabulary + tokens_N, return_inverse=True)
        numbers.append(before_N + count)
        count += before_N.max(initial=-1) + 1
    return np.stack(numbers, axis=1)


def _in_turn(streams: Sequence[Iterator[np.ndarray]]) -> Iterator[np.ndarray]:
    """One of each in turn until all are at an end."""
    left = list(streams)
    while left:
        for stream in tuple(left):
            document = next(stream, None)
            if document is None:
                left.remove(stream)
            else:
                yield document


def measure_texts(
    config: TextsConfig,
    architecture: ModelConfig,
    passage: EvaluationSet,
    params: Any,
    documents_KN: Array,
    points_KT: Array,
) -> dict[str, Array]:
    """Of one member on one passage: float32 scalars by "target/metric"."""
    read = _read(config, architecture, passage, params, points_KT)
    found: dict[str, Array] = {}
    for k, name in enumerate(passage.names):
        counted_NL = documents_KN[k][:, None] * passage.scored_NL
        total = jnp.maximum(jnp.sum(counted_NL), 1)
        found[f"texts.{name}/loss"] = jnp.sum(read.loss_NL * counted_NL) / total
        found[f"texts.{name}/accuracy"] = jnp.sum(read.right_NL * counted_NL) / total
        for of, states_KTD in read.states.items():
            measured = states_geometry(config, states_KTD[k])
            found |= {f"{of}.{name}/{metric}": value for metric, value in measured.items()}
    return found


def states_geometry(config: TextsConfig, states_TD: Array) -> dict[str, Array]:
    """Metrics of the first `config.points` distinct states, "duplicates" being those dropped, "points" those left."""
    x_ND, distinct = first_distinct(states_TD, config.points)
    values = summarize(x_ND, [m for m in config.metrics if m not in _OF_DRAWING], config.neighbors)
    values["points"] = jnp.minimum(distinct, len(x_ND)).astype(jnp.float32)
    values["duplicates"] = (len(states_TD) - distinct).astype(jnp.float32)
    return {metric: values[metric] for metric in config.metrics}


def read_states(
    config: TextsConfig, architecture: ModelConfig, passage: EvaluationSet, params: Any, points_KT: Array
) -> dict[str, Array]:
    """One member's states `[K, T, D]` of the drawn tokens, in the order drawn, by the names in config.states."""
    return _read(config, architecture, passage, params, points_KT).states


def members_at_once(config: TextsConfig, architecture: ModelConfig, passages: Sequence[EvaluationSet]) -> int:
    """How many members a device measures side by side.

    By what about one holds of it: states, neighbourhoods, and a batch of documents.
    """
    width = architecture.d_model
    drawn = max(p.points_MKT.shape[1] * p.points_MKT.shape[2] for p in passages) * width * len(config.states)
    neighbourhoods = MAX_ELEMENTS * 3 + config.points * config.neighbors * 4
    batch = _TOKENS_AT_ONCE * (8 * width + 3 * architecture.d_ff + width * architecture.n_layers)
    return int(max(1, _MOST_BYTES // (4.0 * (3 * drawn + neighbourhoods + batch))))


class _Reading(NamedTuple):
    loss_NL: Array
    right_NL: Array
    states: dict[str, Array]  # [K, T, D] by name


def _read(
    config: TextsConfig, architecture: ModelConfig, passage: EvaluationSet, params: Any, points_KT: Array
) -> _Reading:
    """The passage, some documents at a time; of the states only the drawn tokens' are held."""
    count, length = passage.inputs_NL.shape
    size = min(count, max(1, _TOKENS_AT_ONCE // length))
    batches = -(-count // size)
    wanted = config.states if config.metrics else ()
    w_VD = model.unembedding(params)
    # Where but one position is predicted, as in equations, logits of the others aren't made.
    columns_L = np.array(passage.scored_places)

    def split(x_NL: Any) -> Array:
        return jnp.pad(x_NL, [(0, batches * size - count), (0, 0)]).reshape(batches, size, length)

    def read(states: dict[str, Array], batch: tuple[Array, Array, Array]) -> tuple[dict[str, Array], Any]:
        i, inputs_BL, targets_BL = batch
        last = not wanted and list(columns_L) == [length - 1]
        layers = any(name != "final_states" for name in wanted)
        hidden = model.hidden(architecture, params, inputs_BL, layers=layers, last=last)
        here = {f"layer_{j}": x_BLD for j, x_BLD in enumerate(hidden.layers)} | {"final_states": hidden.final_BLD}
        place_KT = points_KT - i * size * length
        inside_KT = (place_KT >= 0) & (place_KT < size * length)
        place_KT = jnp.clip(place_KT, 0, size * length - 1)
        for name in wanted:
            flat = here[name].reshape(-1, architecture.d_model).astype(jnp.float32)
            states[name] = jnp.where(inside_KT[..., None], flat[place_KT], states[name])
        final_BCD = hidden.final_BLD if last else hidden.final_BLD[:, columns_L]
        scores = loss.token_scores(final_BCD, w_VD, targets_BL[:, columns_L])
        return states, scores

    zero_KTD = jnp.zeros((*points_KT.shape, architecture.d_model), jnp.float32)
    states, (loss_bBC, right_bBC) = jax.lax.scan(
        read,
        dict.fromkeys(wanted, zero_KTD),
        (jnp.arange(batches), split(passage.inputs_NL), split(passage.targets_NL)),
    )

    def whole(x_bBC: Array) -> Array:
        x_NC = x_bBC.reshape(batches * size, -1)[:count]
        return jnp.zeros((count, length), jnp.float32).at[:, columns_L].set(x_NC)

    return _Reading(whole(loss_bBC), whole(right_bBC), states)
