"""List the evaluations of a configuration, and run each kind for a stack of models."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from eval import tasks
from eval.config import EvalConfig
from eval.eval_data import ModelBatch
from eval.evaluators import dynamics, finetuning, local_dimension, perturbation, quantization
from eval.lm_loss import Losses
from eval.results import Evaluation, Measured
from olmo_jax.data.sources import task_items
from olmo_jax.data.windows import unigram_loss
from olmo_jax.execution.members import over_members
from olmo_jax.storage.names import file_name


def evaluations(config: EvalConfig) -> list[Evaluation]:
    """Return every evaluation of a configuration, in the order in which they run."""
    text = {
        "tokens_per_domain": config.tokens_per_domain,
        "domains": list(config.domains),
        "set_apart": list(config.finetune.domains),
    }
    chosen = [Evaluation("lm_loss", "lm_loss", text, config.all_checkpoints), Evaluation("unigram", "unigram", text)]
    chosen += quantization.evaluations(config.quantize, text)
    chosen += _perturbations(config, text)
    for name in config.tasks.names:
        settings = {"task": name, "items": config.tasks.most_items, "tokens": config.tasks.tokens}
        chosen.append(Evaluation("tasks", f"task_{file_name(name)}", settings))
    if config.dynamics.cka:
        settings = text | {"tokens": config.dynamics.cka_tokens}
        chosen.append(Evaluation("cka", "cka", settings, everywhere=True))
    if config.dynamics.saturation and config.all_checkpoints:
        settings = text | {name: getattr(config.dynamics, name) for name in dynamics.COLLAPSE}
        chosen.append(Evaluation("saturation", "saturation", settings, at_the_end=True))
    return chosen + local_dimension.evaluations(config) + finetuning.evaluations(config, text)


def _perturbations(config: EvalConfig, text: dict[str, Any]) -> list[Evaluation]:
    noise = {name: getattr(config.perturb, name) for name in ("pattern", "draws", "seed")}
    scales = [("relative", s) for s in config.perturb.relative] + [("absolute", s) for s in config.perturb.absolute]
    noisy = [
        Evaluation("noise", f"noise_{kind}_{s:g}", text | noise | {"scale": s, "relative": kind == "relative"})
        for kind, s in scales
    ]
    return noisy + [
        Evaluation("truncation", f"truncation_{share:g}", text | {"kept": share}) for share in config.perturb.kept_ranks
    ]


def _lm_loss(stack: ModelBatch, evaluation: Evaluation) -> list[Measured]:
    losses = stack.losses
    errors, bits = stack.summaries(losses.standard_errors(), True), stack.summaries(losses.bits_per_byte)
    results = []
    for m, measured in enumerate(stack.measured(losses)):
        metrics = dict(measured.metrics)
        for name, nats in measured.metrics.items():
            metrics[f"standard_error/{name}"] = errors[m][name]
            metrics[f"bits_per_byte/{name}"] = bits[m][name]
            metrics[f"perplexity/{name}"] = float(np.exp(nats))
        results.append(Measured(metrics, measured.more | {"documents": by_document(losses, m)}))
    return results


def by_document(losses: Losses, member: int) -> dict[str, dict[str, list[float]]]:
    """Return the summed nats and the tokens of each document, by domain, for paired comparisons between models."""
    text, results = losses.text, {}
    for place, domain in enumerate(text.domains):
        in_domain_K = text.domain_K == place
        nats = [round(x, 4) if np.isfinite(x) else x for x in losses.nats_MK[member, in_domain_K].tolist()]
        results[domain] = {"nats": nats, "tokens": text.tokens_K[in_domain_K].tolist()}
    return results


def _unigram(stack: ModelBatch, evaluation: Evaluation) -> list[Measured]:
    """Return the loss of a unigram model of the training tokens on the same validation tokens, as a baseline."""
    eval_data = stack.eval_data
    domains = eval_data.shape.config.data.train_domains
    rows = {
        d: np.array([unigram_loss(eval_data.index, domains, documents)]) for d, documents in eval_data.documents.items()
    }
    tokens = {d: sum(map(len, documents)) for d, documents in eval_data.documents.items()}
    return [Measured(stack.summaries(rows)[0], {"tokens": tokens})] * len(stack.models)


def _noise(stack: ModelBatch, evaluation: Evaluation) -> list[Measured]:
    settings = evaluation.settings
    draws = []
    for draw in range(settings["draws"]):
        key = jax.random.fold_in(jax.random.key(settings["seed"]), draw)
        noisy_M = _noisy(stack.params_M, key, settings["scale"], settings["relative"], settings["pattern"])
        draws.append(stack.losses_of(noisy_M))
    results = stack.measured_with_rise(Losses(draws[0].text, np.mean([losses.nats_MK for losses in draws], axis=0)))
    by_draw = [stack.summaries(losses.by_domain) for losses in draws]
    for m, measured in enumerate(results):
        for name in stack.averages:
            values = [row[m][name] for row in by_draw]
            error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
            measured.metrics[f"draws_standard_error/{name}"] = float(error)
    return results


@functools.partial(jax.jit, static_argnames=("relative", "pattern"))
def _noisy(params_M: Any, key: jax.Array, scale: float, relative: bool, pattern: str) -> Any:
    return over_members(lambda params: perturbation.add_noise(params, key, scale, relative, pattern))(params_M)


def _truncation(stack: ModelBatch, evaluation: Evaluation) -> list[Measured]:
    shape = stack.eval_data.shape
    rank = perturbation.kept_dimensions(evaluation.settings["kept"], shape.model.d_model)
    params_M = _truncated(stack.params_M, rank, stack.eval_data.index.vocab_size)
    results = stack.measured_with_rise(stack.losses_of(params_M))
    return [Measured(measured.metrics | {"kept_rank": float(rank)}, measured.more) for measured in results]


@functools.partial(jax.jit, static_argnames=("rank", "vocabulary"))
def _truncated(params_M: Any, rank: int, vocabulary: int) -> Any:
    return over_members(lambda params: perturbation.truncate_unembedding(params, rank, vocabulary))(params_M)


def _tasks(stack: ModelBatch, evaluation: Evaluation) -> list[Measured]:
    settings, eval_data = evaluation.settings, stack.eval_data
    tokens = settings["tokens"] or eval_data.shape.sequence_length
    rows = eval_data.rows(settings["task"], settings["items"], tokens)
    scores = tasks.score(eval_data.shape.model, stack.params_M, rows, eval_data.config.batch_size)
    sources = task_items.sources(settings["task"])
    return [Measured(row, {"sources": sources}) for row in tasks.metrics(rows, scores)]


def _each(measure: Callable[[ModelBatch, Evaluation], list[Measured]]) -> Callable:
    """Return a function that runs `measure` for one evaluation after the other."""

    def measured(stack: ModelBatch, chosen: Sequence[Evaluation]) -> Iterator[list[Measured]]:
        return (measure(stack, evaluation) for evaluation in chosen)

    return measured


# For each kind, a function of a stack and evaluations of that kind; yields, per evaluation, one result per model.
KINDS: dict[str, Callable[[ModelBatch, Sequence[Evaluation]], Iterator[list[Measured]]]] = {
    "lm_loss": _each(_lm_loss),
    "unigram": _each(_unigram),
    "round_to_nearest": _each(quantization.round_to_nearest),
    "gptq": _each(quantization.gptq),
    "noise": _each(_noise),
    "truncation": _each(_truncation),
    "tasks": _each(_tasks),
    "cka": _each(dynamics.cka),
    "saturation": _each(dynamics.saturation),
    "local_dimension": _each(local_dimension.measure),
    "finetune": finetuning.measure,
    "finetune_best": _each(finetuning.best),
}

# The KINDS that apply to models trained on equations.
WITHOUT_TEXT = ("local_dimension",)
