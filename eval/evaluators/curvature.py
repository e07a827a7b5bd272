"""Measure the curvature of the loss around a checkpoint."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from eval.columns import Result
from eval.eval_data import EvalData, ModelBatch
from eval.evaluator import Evaluation, Evaluator, Measured, evaluator
from eval.evaluators.loss import check_domain
from eval.windows import Windows, first_windows, mean_loss
from geometry.curvature import critical_sharpness, hessian_trace, top_eigenvalue
from olmo_jax.config import ModelConfig, require
from olmo_jax.config.field import NOT_NEGATIVE, SEED, Role, at_least, setting
from olmo_jax.config.validation import Settings, unique
from olmo_jax.execution.members import over_members


@dataclasses.dataclass(frozen=True)
class CurvatureConfig(Settings):
    """The curvature of the loss around the weights."""

    sequences: int = setting(
        0,
        Role.OBSERVATION,
        "Windows of validation text on which the loss is measured, those of the training domains; 0 for none.",
        bound=NOT_NEGATIVE,
        unit="sequences",
    )
    draws: int = setting(
        8, Role.OBSERVATION, "Vectors of the estimate of the trace.", bound=at_least(2, "needs 2, for a standard error")
    )
    lanczos_steps: int = setting(
        16, Role.OBSERVATION, "Steps to the largest eigenvalue.", bound=at_least(2, "needs at least 2")
    )
    domains: tuple[str, ...] = setting(
        (),
        Role.OBSERVATION,
        "Domains of which the critical sharpness along the training domains' gradient is measured; () for none.",
    )
    seed: int = setting(0, Role.OBSERVATION, "Seed of the random vectors.", bound=SEED)

    def check_fields(self, at: str) -> None:
        unique(self.domains, f"{at}.domains")


@evaluator
class Curvature(Evaluator[CurvatureConfig]):
    """Trace, largest eigenvalue, and critical sharpness along the gradient, at the last checkpoint."""

    kind = "curvature"
    section = "curvature"
    config_type = CurvatureConfig
    refused_without_text = "sequences"
    words = "Of the loss of the training domains"
    results = (
        Result("trace", "Trace of the Hessian", "", "geometry"),
        Result("trace_standard_error", "Standard error of the trace", "", "geometry", {"statistic": "standard_error"}),
        Result("top_eigenvalue", "Largest eigenvalue of the Hessian", "", "geometry"),
        Result("critical_sharpness", "Critical sharpness along the gradient", "", "geometry"),
        Result(
            "critical_sharpness/(?P<domain>.+)",
            "Critical sharpness of the loss {domain} along the gradient",
            "",
            "geometry",
        ),
    )

    def evaluations(self) -> list[Evaluation]:
        if not self.config.sequences:
            return []
        return [Evaluation(self.kind, self.kind, self.text.text_settings | self.section_settings)]

    def check(self, data: EvalData) -> None:
        if self.config.sequences:
            for domain in self.config.domains:
                check_domain(f"{self.key}.domains", domain, data)
                require(
                    not self.text.domains or domain in self.text.domains,
                    f"{self.key}.domains",
                    domain,
                    f"isn't among config.evaluation.domains = {', '.join(self.text.domains)}, the text that is read; "
                    "add it there",
                )

    def measure(self, models: ModelBatch, evaluation: Evaluation) -> list[Measured]:
        data, settings = models.eval_data, evaluation.settings
        windows = [first_windows(data, settings["sequences"])]
        windows += [first_windows(data, settings["sequences"], (domain,)) for domain in settings["domains"]]
        numbers = settings["draws"], settings["lanczos_steps"]
        key = jax.random.key(settings["seed"])
        values = jax.device_get(_measure(data.shape.model, numbers, models.params_M, key, windows))
        sharpness = ["critical_sharpness", *(f"critical_sharpness/{domain}" for domain in settings["domains"])]
        names = ["trace", "trace_standard_error", "top_eigenvalue", *sharpness]
        columns = [*values[:3], *np.moveaxis(values[3], 1, 0)]
        return [
            Measured({name: float(column[m]) for name, column in zip(names, columns, strict=True)}, {})
            for m in range(len(models.models))
        ]


@functools.partial(jax.jit, static_argnames=("architecture", "numbers"))
def _measure(
    architecture: ModelConfig, numbers: tuple[int, int], params_M: Any, key: Array, windows: list[Windows]
) -> tuple[Array, Array, Array, Array]:
    """Return trace, its standard error and the top eigenvalue [M], and critical sharpness per text [M, T]."""
    draws, steps = numbers
    losses = [functools.partial(mean_loss, architecture, windows=text) for text in windows]

    def one(params: Any) -> tuple[Array, Array, Array, Array]:
        trace, error = hessian_trace(losses[0], params, key, draws)
        top = top_eigenvalue(losses[0], params, key, steps)
        direction = jax.grad(losses[0])(params)
        along = [critical_sharpness(loss, params, direction, 2.0 / jnp.maximum(top, 1e-6)) for loss in losses]
        return trace, error, top, jnp.stack(along)

    return over_members(one)(params_M)
