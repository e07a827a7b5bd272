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
from eval.quantize import BLOCK_PROJECTIONS, GRANULARITIES, SYMMETRIC_GRIDS, largest_group, quantize_params
from olmo_jax.config import ConfigError, one_of, require
from olmo_jax.config.field import POSITIVE_WHOLE, Role, at_least, choice, each, setting, within
from olmo_jax.config.validation import Settings, unique
from olmo_jax.console import say
from olmo_jax.data.windows import first_documents, train_windows
from olmo_jax.execution.sharding import path_name
from olmo_jax.storage.names import file_name

METHODS = ("round_to_nearest", "gptq")
_WIDTHS = each(within(2, 8), "needs widths of 2 to 8 bits")

# Parts of a model that are quantised together, as patterns of parameter paths. Norms and biases never are.
SCOPES = {
    "blocks": BLOCK_PROJECTIONS,
    "blocks+unembedding": rf"{BLOCK_PROJECTIONS}|unembedding",
    "all": rf"{BLOCK_PROJECTIONS}|unembedding|embedding",
}


@dataclasses.dataclass(frozen=True)
class GroupsConfig(Settings):
    """Quantisation with a scale per group of inputs, measured besides those of the section above.

    Methods, scopes and grid are those of that section. The other defaults are those with which Catalan-Tatjer et
    al. (arXiv 2510.06213) quantise OLMo's models, to 3 and 4 bits; where `size` doesn't divide the inputs of a matrix,
    that has the largest smaller groups that do.
    """

    bits: tuple[int, ...] = setting(
        (), Role.OBSERVATION, "Widths, 2 to 8; () leaves this out. Published: (4, 3).", bound=_WIDTHS, unit="bits"
    )
    size: int = setting(
        128,
        Role.OBSERVATION,
        "Largest number of inputs per group; a matrix has the largest groups up to this that divide its inputs.",
        bound=POSITIVE_WHOLE,
        unit="inputs",
    )
    calibration_tokens: int = setting(
        524_288,
        Role.OBSERVATION,
        "Maximum number of tokens that GPTQ reads. Published: 1,024 documents of up to 512 tokens.",
        bound=POSITIVE_WHOLE,
        unit="tokens",
    )
    document_tokens: int = setting(
        512,
        Role.OBSERVATION,
        "Maximum number of tokens that each training document contributes; 0: training windows are read instead.",
        bound=at_least(0, "needs a number of tokens, or 0 for training windows"),
        unit="tokens",
    )

    def check_fields(self, at: str) -> None:
        unique(self.bits, f"{at}.bits")


@dataclasses.dataclass(frozen=True)
class QuantizeConfig(Settings):
    """Quantisation of weights, emulated: bits x methods x scopes, the loss by domain after each."""

    bits: tuple[int, ...] = setting(
        (8, 4, 3), Role.OBSERVATION, "Widths, 2 to 8; () leaves quantisation out.", bound=_WIDTHS, unit="bits"
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
    groups: GroupsConfig = GroupsConfig()

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
                    f"{at}.scopes: {scope!r} is none of {known} and no valid regular expression: {error}"
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
    calibrated = False
    results = (
        Result("error/weight", "Relative error of the weights, mean over matrices", "", "evaluation"),
        Result(
            "error/output", "Relative error of outputs on the calibration tokens, mean over matrices", "", "evaluation"
        ),
        Result("error/output_rounded", "The same by rounding to nearest, mean over matrices", "", "evaluation"),
        Result("error/damping", "Damping of the Hessians, mean over matrices", "", "evaluation"),
        Result("smallest_group", "Inputs that share a scale, the fewest of all matrices", "inputs", "evaluation"),
        *LOSSES,
    )

    def evaluations(self) -> list[Evaluation]:
        config = self.config
        if self.kind not in config.methods:
            return []
        shared = ("granularity", "group_size", "symmetric", "grid", *self.own_settings)
        settings = self.text.text_settings | {name: getattr(config, name) for name in shared}
        in_groups = settings | {"granularity": "group", "group_size": config.groups.size, "adapt_groups": True}
        if self.calibrated:
            in_groups |= {
                "calibration_tokens": config.groups.calibration_tokens,
                "document_tokens": config.groups.document_tokens,
            }
        return [
            Evaluation(
                self.kind,
                f"{self.kind}_{bits}{suffix}" + ("" if scope == "blocks" else f"_{file_name(scope)}"),
                chosen | {"bits": bits, "pattern": SCOPES.get(scope, scope)},
            )
            for widths, suffix, chosen in (
                (config.bits, "", settings),
                (config.groups.bits, f"_group{config.groups.size}", in_groups),
            )
            for scope in config.scopes
            for bits in widths
        ]

    def check(self, data: EvalData) -> None:
        if not self.evaluations():
            return
        size = self.config.group_size
        for scope in self.config.scopes:
            pattern = _with_tied(SCOPES.get(scope, scope), data)
            for path in check_pattern(f"{self.key}.scopes", scope, pattern, data):
                inputs = _inputs(path, data)
                remedy = f"doesn't divide the {inputs} inputs of {path}; choose a divisor, or granularity 'channel'"
                require(not size or inputs % size == 0, f"{self.key}.group_size", size, remedy)

    def _results(self, models: ModelBatch, evaluation: Evaluation, changed_M: Any, errors: "_Errors") -> list[Measured]:
        """Return losses, their rise, and the errors of the matrices: those given, and those of the weights."""
        losses = models.measured_with_rise(models.losses_of(changed_M), relative=True)
        by_path: _Errors = _weight_errors(models.params_M, changed_M)
        for path, of_path in errors.items():
            by_path[path] |= of_path
        results = _with_errors(losses, by_path)
        settings, data = evaluation.settings, models.eval_data
        if settings.get("adapt_groups"):
            pattern = _with_tied(settings["pattern"], data)
            paths = [path for path in data.matrices if re.fullmatch(pattern, path)]
            smallest = min(largest_group(_inputs(path, data), settings["group_size"]) for path in paths)
            results = [result._replace(metrics=result.metrics | {"smallest_group": smallest}) for result in results]
        return results


# The value of an error for each model, `[M]`, by path of the matrix and name of the error.
_Errors = dict[str, dict[str, Any]]


def _with_tied(pattern: str, data: EvalData) -> str:
    """Return a pattern that matches the embedding too, if that is tied and serves as the unembedding that matches."""
    tied = "unembedding" not in data.matrices and re.fullmatch(pattern, "unembedding")
    return f"{pattern}|embedding" if tied else pattern


def _inputs(path: str, data: EvalData) -> int:
    rows, columns = data.matrices[path]
    return columns if path in ("embedding", "unembedding", "positions") else rows


@evaluator
class RoundToNearest(_Quantization):
    """Losses after rounding to nearest, their rise, and the errors of weights."""

    kind = "round_to_nearest"
    names = r"round_to_nearest_(?P<bits>\d+)(?:_group(?P<group>\d+))?(?P<scope>_.+)?"
    words = "After rounding weights to {bits} bits{group}{scope}"
    of = {"after": "quantize", "method": "round_to_nearest", "scope": "blocks"}

    def measure(self, models: ModelBatch, evaluation: Evaluation) -> list[Measured]:
        settings = evaluation.settings
        method = _method(settings)
        bits, *how = method.rounding
        rounded_M = _rounded(models.params_M, bits, settings["pattern"], (*how, method.adapt_groups))
        return self._results(models, evaluation, rounded_M, {})


@evaluator
class Gptq(_Quantization):
    """The same for GPTQ, with output errors on the calibration tokens; prints a notice if damping was raised."""

    kind = "gptq"
    names = r"gptq_(?P<bits>\d+)(?:_group(?P<group>\d+))?(?P<scope>_.+)?"
    words = "After GPTQ to {bits} bits{group}{scope}"
    of = {"after": "quantize", "method": "gptq", "scope": "blocks"}
    own_settings = ("act_order", "damping", "calibration_tokens")
    calibrated = True

    def measure(self, models: ModelBatch, evaluation: Evaluation) -> list[Measured]:
        settings, data = evaluation.settings, models.eval_data
        method = _method(settings)._replace(act_order=settings["act_order"], damping=settings["damping"])
        tokens, document_tokens = settings["calibration_tokens"], settings.get("document_tokens", 0)
        tokens_NL, is_text_NL = (
            data.once(_calibration_documents, tokens, document_tokens)
            if document_tokens
            else (data.once(_calibration_windows, tokens), None)
        )
        quantized_M, errors = gptq_params(
            data.shape.model,
            models.params_M,
            tokens_NL,
            settings["pattern"],
            method,
            data.config.batch_size,
            is_text_NL,
        )
        by_path = {path: output_errors._asdict() for path, output_errors in jax.device_get(errors).items()}
        results = self._results(models, evaluation, quantized_M, by_path)
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
    _say_if_few(data, count * length, "calibration_tokens")
    return np.asarray(train_windows(data.index, domains, length, count, 0)[0])[:, :-1]


def _calibration_documents(data: EvalData, tokens: int, document_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Return training documents, each cut and one per row, and where a row has text, `[N, L]` both.

    Every domain contributes an equal share of the tokens. L is `document_tokens`, or the length of the sequences that
    the models were trained on if that is less. Empty rows make the number of rows a multiple of the batch size if it
    exceeds that.
    """
    length = min(document_tokens, data.shape.sequence_length)
    domains = data.shape.config.data.train_domains or data.index.domains
    documents = [
        document
        for domain in domains
        for document in first_documents(data.index, domain, max(1, tokens // len(domains)), ("train",), length)
    ]
    batch = data.config.batch_size
    rows = len(documents) if len(documents) <= batch else -(-len(documents) // batch) * batch
    _say_if_few(data, sum(map(len, documents)), "groups.calibration_tokens")
    tokens_NL, is_text_NL = np.zeros((rows, length), np.int32), np.zeros((rows, length), bool)
    for row, document in enumerate(documents):
        tokens_NL[row, : len(document)], is_text_NL[row, : len(document)] = document, True
    return tokens_NL, is_text_NL


def _say_if_few(data: EvalData, tokens: int, field: str) -> None:
    widest = max(data.shape.model.d_model, data.shape.model.d_ff)
    if tokens < widest:
        say(
            f"calibration has {tokens} tokens, fewer than the {widest} inputs of a matrix, so GPTQ's Hessians are "
            f"singular without damping; raise config.evaluation.quantize.{field}"
        )


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
        adapt_groups=settings.get("adapt_groups", False),
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
