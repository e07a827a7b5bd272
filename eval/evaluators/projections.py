"""Measure how well the inputs of every projection are aligned with its weights."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from eval.columns import Result
from eval.eval_data import ModelBatch
from eval.evaluator import Evaluation, Evaluator, Measured, evaluator
from eval.windows import Windows, first_windows
from geometry.alignment import alignment_dimension, log_alignment_ratio
from olmo_jax import model
from olmo_jax.config import ModelConfig
from olmo_jax.config.field import NOT_NEGATIVE, Role, setting
from olmo_jax.config.validation import Settings
from olmo_jax.execution.members import over_members


@dataclasses.dataclass(frozen=True)
class ProjectionsConfig(Settings):
    """The alignment of every projection with its inputs."""

    sequences: int = setting(
        0,
        Role.OBSERVATION,
        "Windows of validation text whose states are measured, those of the training domains; 0 for none.",
        bound=NOT_NEGATIVE,
        unit="sequences",
    )


@evaluator
class Projections(Evaluator[ProjectionsConfig]):
    """The log-alignment ratio and the effective dimension of every projection, and the ratio's mean."""

    kind = "projections"
    names = "projections"
    section = "projections"
    config_type = ProjectionsConfig
    refused_without_text = "sequences"
    results = (
        Result("log_alignment_ratio", "Log-alignment ratio, mean over projections", "", "geometry"),
        Result("log_alignment_ratio/(?P<matrix>.+)", "Log-alignment ratio of {matrix} and its inputs", "", "geometry"),
        Result(
            "effective_dimension/(?P<matrix>.+)",
            "Effective dimension of the inputs of {matrix}, by their alignment",
            "dimensions",
            "geometry",
        ),
    )

    def evaluations(self) -> list[Evaluation]:
        if not self.config.sequences:
            return []
        return [Evaluation(self.kind, self.kind, self.text.text_settings | self.section_settings)]

    def measure(self, models: ModelBatch, evaluation: Evaluation) -> list[Measured]:
        windows = first_windows(models.eval_data, evaluation.settings["sequences"])
        ratios, widths = _ratios(models.eval_data.shape.model, models.params_M, windows)
        ratio_MP = np.stack([np.asarray(jax.device_get(ratios[name]), np.float64) for name in widths], axis=1)
        dimension_MP = np.stack(
            [np.asarray(alignment_dimension(ratios[name], width)) for name, width in widths.items()], axis=1
        )
        return [
            Measured(
                {"log_alignment_ratio": float(ratio_P.mean())}
                | {f"log_alignment_ratio/{name}": float(x) for name, x in zip(widths, ratio_P, strict=True)}
                | {f"effective_dimension/{name}": float(x) for name, x in zip(widths, dimension_P, strict=True)},
                {},
            )
            for ratio_P, dimension_P in zip(ratio_MP, dimension_MP, strict=True)
        ]


def _ratios(config: ModelConfig, params_M: Any, windows: Windows) -> tuple[dict[str, Array], dict[str, int]]:
    """Return the log-alignment ratio `[M]` of each projection and the width of its inputs, by its path."""
    x_MNLD = _embedded(config, params_M, windows)
    ratios: dict[str, Array] = {}
    widths: dict[str, int] = {}
    for i, layer in enumerate(config.layers):
        block = f"blocks_{i}"
        x_MNLD, of_block = _block(config, layer, params_M[block], x_MNLD, windows)
        for path, ratio_M in of_block.items():
            part, name = path.split("/")
            ratios[f"{block}/{path}"] = ratio_M
            widths[f"{block}/{path}"] = params_M[block][part][name].shape[1]
    ratios["unembedding"] = _head(config, params_M, x_MNLD, windows)
    widths["unembedding"] = config.d_model
    return ratios, widths


@functools.partial(jax.jit, static_argnames="config")
def _embedded(config: ModelConfig, params_M: Any, windows: Windows) -> Array:
    return over_members(lambda params: model.embed(config, params, windows.inputs_NL))(params_M)


@functools.partial(jax.jit, static_argnames=("config", "layer"))
def _block(
    config: ModelConfig, layer: Any, block_params_M: Any, x_MNLD: Array, windows: Windows
) -> tuple[Array, dict[str, Array]]:
    wide = dataclasses.replace(config, compute_dtype="float32")

    def one(block_params: Any, x_NLD: Array) -> tuple[Array, dict[str, Array]]:
        out_NLD, inputs = model.block_inputs(wide, block_params, x_NLD, layer=layer)
        return out_NLD, {path: _ratio(_matrix(block_params, path), x_NLI, windows) for path, x_NLI in inputs.items()}

    return over_members(one)(block_params_M, x_MNLD)


def _matrix(block_params: Any, path: str) -> Array:
    part, name = path.split("/")
    return jnp.asarray(block_params[part][name]).T


@functools.partial(jax.jit, static_argnames="config")
def _head(config: ModelConfig, params_M: Any, x_MNLD: Array, windows: Windows) -> Array:
    def one(params: Any, x_NLD: Array) -> Array:
        w_VD = model.unembedding(params)[: config.vocab_size]
        return _ratio(w_VD, model.final_norm(config, params, x_NLD), windows)

    return over_members(one)(params_M, x_MNLD)


def _ratio(w_OI: Array, x_NLI: Array, windows: Windows) -> Array:
    """Return the ratio for the inputs at positions that count; the others are 0, which changes no ratio.

    Both rms in the ratio's numerator and denominator are over as many rows, and so lose the same factor.
    """
    x_NLI = jnp.where(windows.weights_NL[:, :, None] > 0, x_NLI.astype(jnp.float32), 0.0)
    return log_alignment_ratio(w_OI, x_NLI.reshape(-1, x_NLI.shape[-1]))
