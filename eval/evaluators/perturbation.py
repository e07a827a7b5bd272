"""Perturb weights: add Gaussian noise, or reduce the rank of the unembedding."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from eval.columns import LOSSES, Result
from eval.eval_data import EvalData, ModelBatch
from eval.evaluator import Evaluation, Evaluator, Measured, evaluator
from eval.lm_loss import Losses
from geometry.svd import matmul, right_singular
from olmo_jax import model
from olmo_jax.columns import Column
from olmo_jax.config import require
from olmo_jax.config.field import POSITIVE_WHOLE, POSITIVES, SEED, Bound, Role, each, setting
from olmo_jax.config.validation import Settings, regular_expression, unique
from olmo_jax.execution import sharding
from olmo_jax.execution.members import over_members


@dataclasses.dataclass(frozen=True)
class PerturbConfig(Settings):
    """How the loss responds to perturbed weights: Gaussian noise, and an unembedding of lower rank."""

    absolute: tuple[float, ...] = setting(
        (),
        Role.OBSERVATION,
        "Standard deviations of Gaussian noise, in the units of the weights; () for none.",
        bound=POSITIVES,
    )
    relative: tuple[float, ...] = setting(
        (),
        Role.OBSERVATION,
        "Standard deviations of Gaussian noise, over the root mean square of the matrix it is added to; () for none.",
        bound=POSITIVES,
    )
    pattern: str = setting(
        ".*",
        Role.OBSERVATION,
        "Regular expression that the whole path of a matrix has to match for noise to be added to it.",
    )
    draws: int = setting(
        3,
        Role.OBSERVATION,
        "Number of draws of the noise, the same for every model; mean and standard error are over the draws.",
        bound=POSITIVE_WHOLE,
    )
    seed: int = setting(0, Role.OBSERVATION, "Seed of the draws.", bound=SEED)
    kept_ranks: tuple[float, ...] = setting(
        (),
        Role.OBSERVATION,
        "Shares of its dimensions that the unembedding keeps, by descending singular value; () for none.",
        bound=each(Bound("(0, 1]", "needs shares in (0, 1]", lambda share: 0 < share <= 1)),
        unit="share",
    )

    def check_fields(self, at: str) -> None:
        for name in ("absolute", "relative"):
            unique(tuple(f"{scale:g}" for scale in getattr(self, name)), f"{at}.{name}")
        unique(tuple(f"{share:g}" for share in self.kept_ranks), f"{at}.kept_ranks")
        regular_expression(self.pattern, f"{at}.pattern")


@evaluator
class Noise(Evaluator[PerturbConfig]):
    """Losses with noise on the weights: the mean over draws, and its standard error."""

    kind = "noise"
    section = "perturb"
    config_type = PerturbConfig
    names = r"noise_(?P<unit>relative|absolute)_(?P<scale>[^_]+)"
    words = "After noise of {scale} {unit}"
    of = {"after": "perturb", "method": "noise"}
    results = LOSSES

    @classmethod
    def column(cls, name: str, result: str, groups: Mapping[str, str | None]) -> Column:
        units = {"relative": "of each matrix's root mean square", "absolute": "in the units of the weights"}
        column = super().column(name, result, {**groups, "unit": units[groups["unit"] or "absolute"]})
        return dataclasses.replace(column, of={**column.of, "unit": groups["unit"]})

    def evaluations(self) -> list[Evaluation]:
        shared = self.text.text_settings | {name: getattr(self.config, name) for name in ("pattern", "draws", "seed")}
        scales = [("relative", scale) for scale in self.config.relative]
        scales += [("absolute", scale) for scale in self.config.absolute]
        return [
            Evaluation(self.kind, f"noise_{unit}_{scale:g}", shared | {"scale": scale, "relative": unit == "relative"})
            for unit, scale in scales
        ]

    def check(self, data: EvalData) -> None:
        if self.evaluations():
            check_pattern(f"{self.key}.pattern", self.config.pattern, self.config.pattern, data)

    def measure(self, models: ModelBatch, evaluation: Evaluation) -> list[Measured]:
        settings = evaluation.settings
        draws = []
        for draw in range(settings["draws"]):
            key = jax.random.fold_in(jax.random.key(settings["seed"]), draw)
            noisy_M = _noisy(models.params_M, key, settings["scale"], settings["relative"], settings["pattern"])
            draws.append(models.losses_of(noisy_M))
        mean = Losses(draws[0].text, np.mean([losses.nats_MK for losses in draws], axis=0))
        results = models.measured_with_rise(mean)
        by_draw = [models.summaries(losses.by_domain) for losses in draws]
        for m, measured in enumerate(results):
            for name in models.averages:
                values = [row[m][name] for row in by_draw]
                error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
                measured.metrics[f"draws_standard_error/{name}"] = float(error)
        return results


@evaluator
class Truncation(Evaluator[PerturbConfig]):
    """Losses with an unembedding of lower rank."""

    kind = "truncation"
    section = "perturb"
    config_type = PerturbConfig
    names = r"truncation_(?P<kept>[^_]+)"
    words = "After the unembedding was truncated to {kept} of its dimensions"
    of = {"after": "perturb", "method": "truncation"}
    results = (Result("kept_rank", "Its rank", "", "count"), *LOSSES)

    def evaluations(self) -> list[Evaluation]:
        return [
            Evaluation(self.kind, f"truncation_{share:g}", self.text.text_settings | {"kept": share})
            for share in self.config.kept_ranks
        ]

    def measure(self, models: ModelBatch, evaluation: Evaluation) -> list[Measured]:
        data = models.eval_data
        rank = kept_dimensions(evaluation.settings["kept"], data.shape.model.d_model)
        params_M = _truncated(models.params_M, rank, data.index.vocab_size)
        results = models.measured_with_rise(models.losses_of(params_M))
        return [Measured(measured.metrics | {"kept_rank": float(rank)}, measured.more) for measured in results]


def check_pattern(key: str, value: str, pattern: str, data: EvalData) -> list[str]:
    """Return the paths of the matrices whose whole path matches a pattern. Raises ConfigError if there are none."""
    matched = [path for path in data.matrices if re.fullmatch(pattern, path)]
    remedy = f"matches no matrix; the matrices are {', '.join(list(data.matrices)[:8])}, ..."
    require(bool(matched), key, value, remedy)
    return matched


@functools.partial(jax.jit, static_argnames=("relative", "pattern"))
def _noisy(params_M: Any, key: Array, scale: float, relative: bool, pattern: str) -> Any:
    return over_members(lambda params: add_noise(params, key, scale, relative, pattern))(params_M)


@functools.partial(jax.jit, static_argnames=("rank", "vocabulary"))
def _truncated(params_M: Any, rank: int, vocabulary: int) -> Any:
    return over_members(lambda params: truncate_unembedding(params, rank, vocabulary))(params_M)


def add_noise(params: Any, key: Array, scale: float, relative: bool = False, pattern: str = ".*") -> Any:
    """Return one model's parameters with independent Gaussian noise added to its matrices.

    Args:
      params: nested dict of arrays, of one model; `jax.vmap` adds the same noise to all members of a stack.
      key: random key. The noise of a matrix depends only on the key, the matrix's path and its shape.
      scale: standard deviation; with `relative`, in units of the matrix's root mean square, so that the noise has about
        `scale` times the matrix's Frobenius norm.
      pattern: regular expression that the whole path of a matrix has to match.

    Raises ValueError if no matrix matches.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    paths = [sharding.path_name(path) for path, _ in leaves]
    matched = [leaf.ndim == 2 and bool(re.fullmatch(pattern, p)) for p, (_, leaf) in zip(paths, leaves, strict=True)]
    if not any(matched):
        raise ValueError(
            f"no matrix of the parameters matches {pattern!r}; the parameters are {', '.join(paths[:8])}, ..."
        )

    def noisy(place: int, w_IO: Array) -> Array:
        unit = jnp.sqrt(jnp.mean(jnp.square(w_IO))) if relative else 1.0
        # Leaves of a dict are sorted by path, so that the index depends on nothing else.
        return w_IO + scale * unit * jax.random.normal(jax.random.fold_in(key, place), w_IO.shape, w_IO.dtype)

    changed = [noisy(i, leaf) if matched[i] else leaf for i, (_, leaf) in enumerate(leaves)]
    return jax.tree_util.tree_unflatten(structure, changed)


def kept_dimensions(share: float, dimensions: int) -> int:
    """Return the number of dimensions in a share of them, at least one."""
    return max(1, round(share * dimensions))


def truncate_unembedding(params: Any, rank: int, vocabulary: int | None = None) -> Any:
    """Return one model's parameters with the unembedding replaced by the nearest matrix of at most that rank.

    W V_k V_k^T, with V_k the first `rank` right singular vectors of the first `vocabulary` rows of W [V, D]; later rows
    are padding. A model with tied embeddings gets a separate unembedding, and its embedding is unchanged.
    """
    w_VD = model.unembedding(params)
    _, v_DD = right_singular(w_VD[:vocabulary])
    v_Dk = v_DD[:, :rank]
    return params | {"unembedding": matmul(matmul(w_VD, v_Dk), v_Dk.T)}
