"""Quantise models for all bits, methods and scopes; measure losses and the errors of matrices."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eval.columns import LOSSES, Result
from eval.eval_data import EvalData, ModelBatch
from eval.evaluator import Evaluation, Evaluator, Measured, evaluator
from eval.evaluators.calibrate import Method, gptq_params
from eval.evaluators.perturbation import check_pattern
from eval.quantize import BLOCK_PROJECTIONS, GRANULARITIES, SYMMETRIC_GRIDS, quantize_params
from olmo_jax.config import ConfigError, one_of, require
from olmo_jax.config.field import POSITIVE_WHOLE, Role, at_least, choice, each, setting, within
from olmo_jax.config.validation import Settings, unique
from olmo_jax.console import say
from olmo_jax.data.windows import train_windows
from olmo_jax.execution.sharding import path_name
from olmo_jax.storage.names import file_name

METHODS = ("round_to_nearest", "gptq")

# Parts of a model that are quantised together, as patterns of parameter paths. Norms and biases never are.
SCOPES = {
    "blocks": BLOCK_PROJECTIONS,
    "blocks+unembedding": rf"{BLOCK_PROJECTIONS}|unembedding",
    "all": rf"{BLOCK_PROJECTIONS}|unembedding|embedding",
}


@dataclasses.dataclass(frozen=True)
class QuantizeConfig(Settings):
    """Quantisation of weights, emulated: bits x methods x scopes, the loss by domain after each."""

    bits: tuple[int, ...] = setting(
        (8, 4, 3),
        Role.OBSERVATION,
        "Widths, 2 to 8; () leaves quantisation out.",
        bound=each(within(2, 8), "needs widths of 2 to 8 bits"),
        unit="bits",
    )
    methods: tuple[str, ...] = setting(METHODS, Role.OBSERVATION, 'Methods: "round_to_nearest", "gptq".')
    scopes: tuple[str, ...] = setting(
        ("blocks",),
        Role.OBSERVATION,
        'Parts that are quantised together: "blocks" (the blocks\' projections), "blocks+unembedding", "all" (the '
        "embedding too), or a regular expression that the whole of a parameter's path has to match.",
    )
    granularity: str = setting(
        "channel",
        Role.OBSERVATION,
        "Weights that share a scale, as in quantize.round_to_nearest.",
        bound=choice(*GRANULARITIES),
    )
    group_size: int = setting(
        0,
        Role.OBSERVATION,
        'Inputs of a group where granularity is "group"; else 0.',
        bound=at_least(0, "needs a number of inputs, or 0 for no groups"),
    )
    symmetric: bool = setting(True, Role.OBSERVATION, "The grid is symmetric around 0.")
    grid: str = setting(
        "max",
        Role.OBSERVATION,
        "Range that the grid covers, as in quantize.round_to_nearest.",
        bound=choice(*SYMMETRIC_GRIDS),
    )
    act_order: bool = setting(
        False, Role.OBSERVATION, "GPTQ takes inputs in the order of their second moments, the largest first."
    )
    damping: float = setting(
        0.01,
        Role.OBSERVATION,
        "Share of the mean of the Hessian's diagonal that GPTQ adds to it.",
        bound=at_least(0, "needs a share of 0 or more"),
        unit="share",
    )
    calibration_tokens: int = setting(
        16384,
        Role.OBSERVATION,
        "Tokens of the training windows (those of data seed 0, whatever a run has seen) that GPTQ reads.",
        bound=POSITIVE_WHOLE,
        unit="tokens",
    )

    def check_fields(self, at: str) -> None:
        for name in ("bits", "methods", "scopes"):
            unique(getattr(self, name), f"{at}.{name}")
        for method in self.methods:
            one_of(method, METHODS, f"{at}.methods")
        for scope in self.scopes:
            try:
                re.compile(SCOPES.get(scope, scope))
            except re.error as error:
                known = ", ".join(SCOPES)
                raise ConfigError(
                    f"{at}.scopes: {scope!r} is none of {known} and no regular expression: {error}"
                ) from None
        require(
            (self.granularity == "group") == (self.group_size > 0),
            f"{at}.group_size",
            self.group_size,
            f"contradicts {at}.granularity = {self.granularity!r}: 'group' needs the number of inputs of a group, the "
            "others 0",
        )


class _Quantization(Evaluator[QuantizeConfig]):
    """What the methods share: one evaluation per scope and number of bits, and the checks of scopes."""

    section = "quantize"
    config_type = QuantizeConfig
    own_settings: tuple[str, ...] = ()
    results = (
        Result("error/weight", "Relative error of the weights, mean over matrices", "", "evaluation"),
        Result(
            "error/output", "Relative error of outputs on the calibration tokens, mean over matrices", "", "evaluation"
        ),
        Result("error/output_rounded", "The same by rounding to nearest, mean over matrices", "", "evaluation"),
        Result("error/damping", "Damping of the Hessians, mean over matrices", "", "evaluation"),
        *LOSSES,
    )

    def evaluations(self) -> list[Evaluation]:
        config = self.config
        shared = ("granularity", "group_size", "symmetric", "grid", *self.own_settings)
        settings = self.text.text_settings | {name: getattr(config, name) for name in shared}
        return [
            Evaluation(
                self.kind,
                f"{self.kind}_{bits}" + ("" if scope == "blocks" else f"_{file_name(scope)}"),
                settings | {"bits": bits, "pattern": SCOPES.get(scope, scope)},
            )
            for scope in (config.scopes if self.kind in config.methods else ())
            for bits in config.bits
        ]

    def check(self, data: EvalData) -> None:
        if not self.evaluations():
            return
        size = self.config.group_size
        for scope in self.config.scopes:
            pattern = SCOPES.get(scope, scope)
            if "unembedding" not in data.matrices and re.fullmatch(pattern, "unembedding"):
                pattern = f"{pattern}|embedding"  # a tied embedding serves as both
            for path in check_pattern(f"{self.key}.scopes", scope, pattern, data):
                rows, columns = data.matrices[path]
                inputs = columns if path in ("embedding", "unembedding", "positions") else rows
                remedy = f"doesn't divide the {inputs} inputs of {path}; choose a divisor, or granularity 'channel'"
                require(not size or inputs % size == 0, f"{self.key}.group_size", size, remedy)


@evaluator
class RoundToNearest(_Quantization):
    """Losses after rounding to nearest, their rise, and the errors of weights."""

    kind = "round_to_nearest"
    names = r"round_to_nearest_(?P<bits>\d+)(?P<scope>_.+)?"
    words = "After rounding weights to {bits} bits{scope}"
    of = {"after": "quantize", "method": "round_to_nearest", "scope": "blocks"}

    def measure(self, models: ModelBatch, evaluation: Evaluation) -> list[Measured]:
        settings = evaluation.settings
        bits, *how = _method(settings).rounding
        rounded_M = _rounded(models.params_M, bits, settings["pattern"], tuple(how))
        losses = models.measured_with_rise(models.losses_of(rounded_M))
        return _with_errors(losses, _weight_errors(models.params_M, rounded_M))


@evaluator
class Gptq(_Quantization):
    """The same for GPTQ, with output errors on the calibration tokens; prints a notice if damping was raised."""

    kind = "gptq"
    names = r"gptq_(?P<bits>\d+)(?P<scope>_.+)?"
    words = "After GPTQ to {bits} bits{scope}"
    of = {"after": "quantize", "method": "gptq", "scope": "blocks"}
    own_settings = ("act_order", "damping", "calibration_tokens")

    def measure(self, models: ModelBatch, evaluation: Evaluation) -> list[Measured]:
        settings, data = evaluation.settings, models.eval_data
        method = _method(settings)._replace(act_order=settings["act_order"], damping=settings["damping"])
        quantized_M, errors = gptq_params(
            data.shape.model,
            models.params_M,
            data.once(_calibration_windows, settings["calibration_tokens"]),
            settings["pattern"],
            method,
            data.config.batch_size,
        )
        losses = models.measured_with_rise(models.losses_of(quantized_M))
        by_path: dict[str, dict[str, Any]] = _weight_errors(models.params_M, quantized_M)
        for path, output_errors in jax.device_get(errors).items():
            by_path[path] |= output_errors._asdict()
        results = _with_errors(losses, by_path)
        configured = np.float32(method.damping)  # the precision of the computation
        raised = {
            path: np.nanmax(e.damping) for path, e in errors.items() if np.any(np.asarray(e.damping) > configured)
        }
        if raised:
            _say_raised(evaluation.name, method.damping, raised)
        return results


def _calibration_windows(data: EvalData, tokens: int) -> np.ndarray:
    """Return training windows `[N, L]`, the same for every run; prints a notice if they are few."""
    length, domains = data.shape.sequence_length, data.shape.config.data.train_domains
    available = sum(data.index.shard("train", d).tokens for d in domains or data.index.domains)
    count = min(max(1, tokens // length), (available - 1) // length)
    widest = max(data.shape.model.d_model, data.shape.model.d_ff)
    if count * length < widest:
        say(
            f"calibration has {count * length} tokens, fewer than the {widest} inputs of a matrix, so GPTQ's "
            "Hessians are singular without damping; raise config.evaluation.quantize.calibration_tokens"
        )
    return np.asarray(train_windows(data.index, domains, length, count, 0)[0])[:, :-1]


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
