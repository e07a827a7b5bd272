"""Estimate the local learning coefficient of a checkpoint."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from eval import llc
from eval.columns import Result
from eval.eval_data import ModelBatch
from eval.evaluator import Evaluation, Evaluator, Measured, evaluator
from eval.windows import Windows, first_windows, mean_loss
from olmo_jax.config import ModelConfig, require
from olmo_jax.config.field import POSITIVES, SEED, Bound, Role, at_least, setting
from olmo_jax.config.validation import Settings
from olmo_jax.execution.members import over_members


@dataclasses.dataclass(frozen=True)
class LlcConfig(Settings):
    """The local learning coefficient, by Langevin chains from the weights."""

    chains: int = setting(
        0,
        Role.OBSERVATION,
        "Chains per model and setting; 0 for none.",
        bound=Bound("0 or at least 2", "needs 0, or 2 to be compared with each other", lambda n: n == 0 or n >= 2),
    )
    # Half of them are left out. Two chains with epsilon = .3 / gamma then pass the limit of R-hat in nine of ten
    # estimates, with 100 steps in eight.
    steps: int = setting(200, Role.OBSERVATION, "Steps of each chain.", bound=at_least(8, "needs 8"), unit="steps")
    epsilons: tuple[float, ...] = setting(
        (3e-5, 3e-4),
        Role.OBSERVATION,
        "Step sizes, all tried in one program; .3 / gamma takes 7 steps to arrive, and above .4 / gamma is flagged.",
        bound=POSITIVES,
    )
    gammas: tuple[float, ...] = setting(
        (1e3, 1e4), Role.OBSERVATION, "Strengths that hold a chain at the weights, all tried.", bound=POSITIVES
    )
    batch_size: int = setting(
        8,
        Role.OBSERVATION,
        "Windows per step, drawn at random; also the m of n beta = m / ln m.",
        bound=at_least(2, "needs 2"),
        unit="sequences",
    )
    sequences: int = setting(
        64,
        Role.OBSERVATION,
        "Windows of validation text of the training domains, from which batches are drawn.",
        bound=at_least(2, "needs 2"),
        unit="sequences",
    )
    seed: int = setting(0, Role.OBSERVATION, "Seed of batches and noise.", bound=SEED)

    def check_fields(self, at: str) -> None:
        for name in ("epsilons", "gammas"):
            require(bool(getattr(self, name)) or not self.chains, f"{at}.{name}", (), "needs one at least")


@evaluator
class LearningCoefficient(Evaluator[LlcConfig]):
    """The coefficient at the chosen step size and strength, with what speaks against it, at the last checkpoint."""

    kind = "llc"
    section = "llc"
    config_type = LlcConfig
    refused_without_text = "chains"
    words = "Of the local learning coefficient"
    results = (
        Result("coefficient", "The estimate", "", "geometry"),
        Result("standard_error", "Its standard error over chains", "", "geometry", {"statistic": "standard_error"}),
        Result("sound", "Whether no flag speaks against it, 1 or 0", "", "evaluation"),
        Result("r_hat", "R-hat of Gelman and Rubin over chains", "", "evaluation"),
        Result("diverged", "Chains that diverged and were left out", "chains", "evaluation"),
        Result("negative", "Whether the chains found lower losses than that of the weights, 1 or 0", "", "evaluation"),
        Result("drift", "Whether its mean still drifts, 1 or 0", "", "evaluation"),
        Result("short", "Whether the chains were still moving away at the end, 1 or 0", "", "evaluation"),
        Result("pull", "What gamma holds back, in units of the coefficient", "", "evaluation"),
        Result(
            "left",
            "Whether the chains went half of the way to the loss of a uniform prediction, 1 or 0",
            "",
            "evaluation",
        ),
        Result("coarse", "Whether the step size is too large for gamma, 1 or 0", "", "evaluation"),
        Result("epsilon", "The chosen step size", "", "evaluation"),
        Result("gamma", "The chosen strength", "", "evaluation"),
    )

    def evaluations(self) -> list[Evaluation]:
        if not self.config.chains:
            return []
        return [Evaluation(self.kind, self.kind, self.text.text_settings | self.section_settings)]

    def measure(self, models: ModelBatch, evaluation: Evaluation) -> list[Measured]:
        data, settings = models.eval_data, evaluation.settings
        windows = first_windows(data, settings["sequences"])
        numbers = settings["batch_size"], settings["chains"], settings["steps"]
        grid = jnp.asarray(settings["epsilons"]), jnp.asarray(settings["gammas"])
        key = jax.random.key(settings["seed"])
        values_M = jax.device_get(coefficients(data.shape.model, numbers, models.params_M, key, windows, *grid))
        return [
            Measured({name: float(x_M[m]) for name, x_M in values_M.items()}, {}) for m in range(len(models.models))
        ]


@functools.partial(jax.jit, static_argnames=("architecture", "numbers"))
def coefficients(
    architecture: ModelConfig,
    numbers: tuple[int, int, int],
    params_M: Any,
    key: Array,
    windows: Windows,
    epsilons_E: Array,
    gammas_G: Array,
) -> dict[str, Array]:
    """Return what LearningCoefficient reports, by the names of its results; each is `[M]`, one value per model.

    Args:
      numbers: windows per step, which is also the m of n beta = m / ln m; chains; and steps of each.
      windows: those that batches are drawn from, with replacement. epsilons_E, gammas_G: all pairs are tried.
    """
    batch_size, chains, steps = numbers

    def loss(params: Any, key: Array) -> Array:
        rows = jax.random.randint(key, (batch_size,), 0, windows.inputs_NL.shape[0])
        return mean_loss(architecture, params, Windows(*(x_NL[rows] for x_NL in windows)))

    def one(params: Any) -> dict[str, Array]:
        # Half of the way to the loss of a uniform prediction, the weights are hardly those of the model [ours].
        gap = math.log(architecture.vocab_size) - mean_loss(architecture, params, windows)
        most_rise = jnp.maximum(gap, 0.0) / 2
        found = llc.search(loss, params, key, batch_size, epsilons_E, gammas_G, chains, steps, most_rise)
        place = found.epsilon, found.gamma
        flags = jax.tree.map(lambda x_EG: x_EG[place], found.flags_EG)
        return {
            "coefficient": found.coefficient_EG[place],
            "standard_error": found.error_EG[place],
            "sound": flags.is_sound,
            **flags._asdict(),
            "epsilon": epsilons_E[found.epsilon],
            "gamma": gammas_G[found.gamma],
        }

    return over_members(one)(params_M)
