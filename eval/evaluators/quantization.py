"""Quantise a stack of models for all bits, methods and scopes; measure losses and the errors of matrices."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eval.config import SCOPES, QuantizeConfig
from eval.eval_data import ModelBatch
from eval.evaluators.calibrate import Method, gptq_params
from eval.quantize import quantize_params
from eval.results import Evaluation, Measured
from olmo_jax.console import say
from olmo_jax.execution.sharding import path_name
from olmo_jax.storage.names import file_name


def evaluations(config: QuantizeConfig, text: dict[str, Any]) -> list[Evaluation]:
    """Return one evaluation per method, scope and number of bits; `text` holds the settings of the losses."""
    how = {name: getattr(config, name) for name in ("granularity", "group_size", "symmetric", "grid")}
    chosen = []
    for method in config.methods:
        for scope in config.scopes:
            for bits in config.bits:
                settings = text | how | {"bits": bits, "pattern": SCOPES.get(scope, scope)}
                if method == "gptq":
                    settings |= {k: getattr(config, k) for k in ("act_order", "damping", "calibration_tokens")}
                name = f"{method}_{bits}" + ("" if scope == "blocks" else f"_{file_name(scope)}")
                chosen.append(Evaluation(method, name, settings))
    return chosen


def round_to_nearest(stack: ModelBatch, evaluation: Evaluation) -> list[Measured]:
    """Return losses after rounding to nearest, their rise, and the errors of weights."""
    settings = evaluation.settings
    bits, *how = _method(settings).rounding
    rounded_M = _rounded(stack.params_M, bits, settings["pattern"], tuple(how))
    losses = stack.measured_with_rise(stack.losses_of(rounded_M))
    return _with_errors(losses, _weight_errors(stack.params_M, rounded_M))


def gptq(stack: ModelBatch, evaluation: Evaluation) -> list[Measured]:
    """Return the same for GPTQ, with output errors on the calibration tokens; prints a notice if damping was raised."""
    settings, eval_data = evaluation.settings, stack.eval_data
    method = _method(settings)._replace(act_order=settings["act_order"], damping=settings["damping"])
    quantized_M, errors = gptq_params(
        eval_data.shape.model,
        stack.params_M,
        eval_data.calibration,
        settings["pattern"],
        method,
        eval_data.config.batch_size,
    )
    losses = stack.measured_with_rise(stack.losses_of(quantized_M))
    by_path: dict[str, dict[str, Any]] = _weight_errors(stack.params_M, quantized_M)
    for path, output_errors in jax.device_get(errors).items():
        by_path[path] |= output_errors._asdict()
    results = _with_errors(losses, by_path)
    configured = np.float32(method.damping)  # the precision of the computation
    raised = {path: np.nanmax(e.damping) for path, e in errors.items() if np.any(np.asarray(e.damping) > configured)}
    if raised:
        _say_raised(evaluation.name, method.damping, raised)
    return results


def _say_raised(name: str, configured: float, raised: dict[str, float]) -> None:
    path = max(raised, key=lambda p: raised[p])
    say(
        f"{name}: with damping = {configured:g} the Hessians of {len(raised)} matrices aren't positive definite; it "
        f"was raised to at most {raised[path]:g} ({path}); raise "
        "config.evaluation.quantize.damping or calibration_tokens"
    )


def _method(settings: dict[str, Any]) -> Method:
    return Method(
        settings["bits"],
        settings["granularity"],
        settings["group_size"] or None,
        settings["symmetric"],
        settings["grid"],
    )


@functools.partial(jax.jit, static_argnames=("pattern", "how"))
def _rounded(params_M: Any, bits: jax.Array, pattern: str, how: tuple) -> Any:
    return jax.vmap(lambda params: quantize_params(params, bits, pattern, *how))(params_M)


@jax.jit
def _weight_errors(before_M: Any, after_M: Any) -> dict[str, dict[str, jax.Array]]:
    """Return |W - Q|_F / |W|_F of each matrix, `[M]`, as "weight", by path."""

    def error(w: jax.Array, q: jax.Array) -> jax.Array:
        size = jnp.sqrt(jnp.sum(w * w, axis=(1, 2)))
        return jnp.sqrt(jnp.sum((w - q) ** 2, axis=(1, 2))) / jnp.where(size > 0, size, 1.0)

    pairs = zip(jax.tree_util.tree_leaves_with_path(before_M), jax.tree.leaves(after_M), strict=True)
    return {path_name(path): {"weight": error(w, q)} for (path, w), q in pairs if w.ndim == 3}


def _with_errors(results: list[Measured], errors: dict[str, dict[str, Any]]) -> list[Measured]:
    """Add the errors of each changed matrix, and their means over matrices as `error/<name>`."""
    extended = []
    for m, measured in enumerate(results):
        matrices = {path: {k: float(v[m]) for k, v in values.items()} for path, values in errors.items()}
        matrices = {path: values for path, values in matrices.items() if values["weight"] != 0}
        names = {name for values in matrices.values() for name in values}
        means = {
            f"error/{name}": float(np.mean([values[name] for values in matrices.values() if name in values]))
            for name in sorted(names)
        }
        extended.append(Measured(measured.metrics | means, measured.more | {"matrices": matrices}))
    return extended
