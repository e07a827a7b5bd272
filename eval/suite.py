"""The evaluations that a configuration asks for, and how each is done for a stack of models at once."""

import functools
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eval import dynamics, finetune, perturb, tasks
from eval.calibrate import Method, gptq_params
from eval.config import SCOPES, EvalConfig, QuantizeConfig
from eval.lm_loss import Losses
from eval.material import Stack
from eval.quantize import quantize_params
from eval.results import Evaluation, Measured
from olmo_jax.cohort import over_members
from olmo_jax.data import task_items
from olmo_jax.data.windows import unigram_loss
from olmo_jax.progress import say
from olmo_jax.sharding import path_name


def evaluations(config: EvalConfig) -> list[Evaluation]:
    """Every evaluation of a configuration, in the order in which they are done."""
    text = {
        "tokens_per_domain": config.tokens_per_domain,
        "domains": list(config.domains),
        "set_apart": list(config.finetune.domains),
    }
    found = [Evaluation("lm_loss", "lm_loss", text, config.all_checkpoints), Evaluation("unigram", "unigram", text)]
    found += _quantizations(config.quantize, text)
    found += _perturbations(config, text)
    for name in config.tasks.names:
        settings = {"task": name, "items": config.tasks.most_items, "tokens": config.tasks.tokens}
        found.append(Evaluation("tasks", f"task_{_file_name(name)}", settings))
    if config.dynamics.cka:
        settings = text | {"tokens": config.dynamics.cka_tokens}
        found.append(Evaluation("cka", "cka", settings, everywhere=True))
    if config.dynamics.saturation and config.all_checkpoints:
        settings = text | {name: getattr(config.dynamics, name) for name in dynamics.COLLAPSE}
        found.append(Evaluation("saturation", "saturation", settings, at_the_end=True))
    return found + finetune.evaluations(config, text)


def _quantizations(config: QuantizeConfig, text: dict[str, Any]) -> list[Evaluation]:
    how = {name: getattr(config, name) for name in ("granularity", "group_size", "symmetric", "grid")}
    found = []
    for method in config.methods:
        for scope in config.scopes:
            for bits in config.bits:
                settings = text | how | {"bits": bits, "pattern": SCOPES.get(scope, scope)}
                if method == "gptq":
                    settings |= {k: getattr(config, k) for k in ("act_order", "damping", "calibration_tokens")}
                name = f"{method}_{bits}" + ("" if scope == "blocks" else f"_{_file_name(scope)}")
                found.append(Evaluation(method, name, settings))
    return found


def _perturbations(config: EvalConfig, text: dict[str, Any]) -> list[Evaluation]:
    noise = {name: getattr(config.perturb, name) for name in ("pattern", "draws", "seed")}
    scales = [("relative", s) for s in config.perturb.relative] + [("absolute", s) for s in config.perturb.absolute]
    found = [
        Evaluation("noise", f"noise_{kind}_{s:g}", text | noise | {"scale": s, "relative": kind == "relative"})
        for kind, s in scales
    ]
    return found + [
        Evaluation("truncation", f"truncation_{share:g}", text | {"kept": share}) for share in config.perturb.kept_ranks
    ]


def _lm_loss(stack: Stack, evaluation: Evaluation) -> list[Measured]:
    losses = stack.losses
    errors, bits = (stack.summaries(*of) for of in ((losses.standard_errors(), True), (losses.bits_per_byte,)))
    found = []
    for m, told in enumerate(stack.told(losses)):
        metrics = dict(told.metrics)
        for name, nats in told.metrics.items():
            metrics[f"standard_error/{name}"] = errors[m][name]
            metrics[f"bits_per_byte/{name}"] = bits[m][name]
            metrics[f"perplexity/{name}"] = float(np.exp(nats))
        found.append(Measured(metrics, told.more | {"documents": by_document(losses, m)}))
    return found


def by_document(losses: Losses, member: int) -> dict[str, dict[str, list[float]]]:
    """Summed nats and tokens of each document, by domain: what paired comparisons between models start from."""
    text, found = losses.text, {}
    for place, domain in enumerate(text.domains):
        of = text.domain_K == place
        nats = [round(x, 4) if np.isfinite(x) else x for x in losses.nats_MK[member, of].tolist()]
        found[domain] = {"nats": nats, "tokens": text.tokens_K[of].tolist()}
    return found


def _unigram(stack: Stack, evaluation: Evaluation) -> list[Measured]:
    """Loss of a unigram model of the training tokens on the same validation tokens: what any model should beat."""
    material = stack.material
    domains = material.shape.train_domains
    rows = {d: np.array([unigram_loss(material.index, domains, of)]) for d, of in material.documents.items()}
    tokens = {d: sum(map(len, of)) for d, of in material.documents.items()}
    return [Measured(stack.summaries(rows)[0], {"tokens": tokens})] * len(stack.models)


def _round_to_nearest(stack: Stack, evaluation: Evaluation) -> list[Measured]:
    settings = evaluation.settings
    bits, *how = _method(settings).rounding
    rounded_M = _rounded(stack.params_M, bits, settings["pattern"], tuple(how))
    told = stack.told_with_rise(stack.losses_of(rounded_M))
    return _with_errors(told, _weight_errors(stack.params_M, rounded_M))


def _gptq(stack: Stack, evaluation: Evaluation) -> list[Measured]:
    settings, material = evaluation.settings, stack.material
    method = _method(settings)._replace(act_order=settings["act_order"], damping=settings["damping"])
    quantized_M, errors = gptq_params(
        material.shape.model,
        stack.params_M,
        material.calibration,
        settings["pattern"],
        method,
        material.config.batch_size,
    )
    told = stack.told_with_rise(stack.losses_of(quantized_M))
    by_path: dict[str, dict[str, Any]] = _weight_errors(stack.params_M, quantized_M)
    for path, of in jax.device_get(errors).items():
        by_path[path] |= of._asdict()
    found = _with_errors(told, by_path)
    asked = np.float32(method.damping)  # as it was computed with
    raised = {path: np.nanmax(e.damping) for path, e in errors.items() if np.any(np.asarray(e.damping) > asked)}
    if raised:
        _say_raised(evaluation.name, method.damping, raised)
    return found


def _say_raised(name: str, asked: float, raised: dict[str, float]) -> None:
    path = max(raised, key=lambda p: raised[p])
    say(
        f"{name}: with damping = {asked:g} the Hessians of {len(raised)} matrices aren't positive definite; it was "
        f"raised to {raised[path]:g} at most ({path}); raise config.evaluation.quantize.damping or calibration_tokens"
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
    """|W - Q|_F / |W|_F of each matrix `[M]` as "weight", by path."""

    def error(w: jax.Array, q: jax.Array) -> jax.Array:
        size = jnp.sqrt(jnp.sum(w * w, axis=(1, 2)))
        return jnp.sqrt(jnp.sum((w - q) ** 2, axis=(1, 2))) / jnp.where(size > 0, size, 1.0)

    pairs = zip(jax.tree_util.tree_leaves_with_path(before_M), jax.tree.leaves(after_M), strict=True)
    return {path_name(path): {"weight": error(w, q)} for (path, w), q in pairs if w.ndim == 3}


def _with_errors(told: list[Measured], errors: dict[str, dict[str, Any]]) -> list[Measured]:
    """With the errors of each matrix that has changed, and their means over matrices as `error/<name>`."""
    found = []
    for m, measured in enumerate(told):
        matrices = {path: {k: float(v[m]) for k, v in of.items()} for path, of in errors.items()}
        matrices = {path: of for path, of in matrices.items() if of["weight"] != 0}
        names = {name for of in matrices.values() for name in of}
        means = {f"error/{n}": float(np.mean([of[n] for of in matrices.values() if n in of])) for n in sorted(names)}
        found.append(Measured(measured.metrics | means, measured.more | {"matrices": matrices}))
    return found


def _noise(stack: Stack, evaluation: Evaluation) -> list[Measured]:
    settings = evaluation.settings
    draws = []
    for draw in range(settings["draws"]):
        key = jax.random.fold_in(jax.random.key(settings["seed"]), draw)
        noisy_M = _noisy(stack.params_M, key, settings["scale"], settings["relative"], settings["pattern"])
        draws.append(stack.losses_of(noisy_M))
    told = stack.told_with_rise(Losses(draws[0].text, np.mean([of.nats_MK for of in draws], axis=0)))
    by_draw = [stack.summaries(of.by_domain) for of in draws]
    for m, measured in enumerate(told):
        for name in stack.averages:
            values = [row[m][name] for row in by_draw]
            error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
            measured.metrics[f"draws_standard_error/{name}"] = float(error)
    return told


@functools.partial(jax.jit, static_argnames=("relative", "pattern"))
def _noisy(params_M: Any, key: jax.Array, scale: float, relative: bool, pattern: str) -> Any:
    return over_members(lambda params: perturb.add_noise(params, key, scale, relative, pattern))(params_M)


def _truncation(stack: Stack, evaluation: Evaluation) -> list[Measured]:
    shape = stack.material.shape
    rank = perturb.kept_dimensions(evaluation.settings["kept"], shape.model.d_model)
    params_M = _truncated(stack.params_M, rank, stack.material.index.vocab_size)
    told = stack.told_with_rise(stack.losses_of(params_M))
    return [Measured(measured.metrics | {"kept_rank": float(rank)}, measured.more) for measured in told]


@functools.partial(jax.jit, static_argnames=("rank", "vocabulary"))
def _truncated(params_M: Any, rank: int, vocabulary: int) -> Any:
    return over_members(lambda params: perturb.truncate_unembedding(params, rank, vocabulary))(params_M)


def _tasks(stack: Stack, evaluation: Evaluation) -> list[Measured]:
    settings, material = evaluation.settings, stack.material
    tokens = settings["tokens"] or material.shape.sequence_length
    rows = material.rows(settings["task"], settings["items"], tokens)
    scores = tasks.score(material.shape.model, stack.params_M, rows, material.config.batch_size)
    sources = task_items.sources(settings["task"])
    return [Measured(of, {"sources": sources}) for of in tasks.metrics(rows, scores)]


def _file_name(text: str) -> str:
    """Any text as a part of a file's name."""
    return urllib.parse.quote(text, safe=" +")


def _each(measure: Callable[[Stack, Evaluation], list[Measured]]) -> Callable:
    """One evaluation after the other."""

    def measured(stack: Stack, chosen: Sequence[Evaluation]) -> Iterator[list[Measured]]:
        return (measure(stack, evaluation) for evaluation in chosen)

    return measured


# How each kind is done: from a stack and evaluations of that kind to what each of these says of each model, in turn.
KINDS: dict[str, Callable[[Stack, Sequence[Evaluation]], Iterator[list[Measured]]]] = {
    "lm_loss": _each(_lm_loss),
    "unigram": _each(_unigram),
    "round_to_nearest": _each(_round_to_nearest),
    "gptq": _each(_gptq),
    "noise": _each(_noise),
    "truncation": _each(_truncation),
    "tasks": _each(_tasks),
    "cka": _each(dynamics.cka),
    "saturation": _each(dynamics.saturation),
    "finetune": finetune.measure,
    "finetune_best": _each(finetune.best),
}
