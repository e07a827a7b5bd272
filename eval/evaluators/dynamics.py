"""Measure what changes over a run's checkpoints: saturation, rank collapse, and similarity to the final states."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from eval.eval_data import EvalData, ModelBatch
from eval.lm_loss import standard_error
from eval.results import Evaluation, Measured, read
from geometry.similarity import linear_cka
from olmo_jax import checkpoint, model, optimizer
from olmo_jax.config import ModelConfig
from olmo_jax.execution.members import over_members
from olmo_jax.logs.metrics import METRICS, read_jsonl

RANK = "unembedding/effective_rank"
# The settings of `saturation` besides those of the losses that it is computed from.
COLLAPSE = ("collapse", "collapse_after")


def saturation(stack: ModelBatch, evaluation: Evaluation) -> list[Measured]:
    """Return, for completed runs, whether in-domain loss rose after its best, and when the unembedding's rank fell.

    `rise` is the final loss minus the best of all checkpoints, with its paired standard error by document; `saturated`
    is 1 if it exceeds two standard errors, else 0 (methods.md section 5). The best is chosen on the same documents, so
    that the rise is at least 0 and slightly too large: two errors aren't a test at the 5 % level.
    `learning_rate_at_best` is the learning rate at the best step, over its peak.
    """
    return [_saturation(stack.eval_data, run, step, evaluation) for run, step in stack.models]


def _saturation(eval_data: EvalData, run: str, end: int, evaluation: Evaluation) -> Measured:
    losses = _losses_by_step(eval_data, run, evaluation)
    domains = eval_data.shape.config.data.train_domains or eval_data.text.domains
    rise = rise_after_best(
        {step: [by_domain[d] for d in domains if d in by_domain] for step, by_domain in losses.items()}
    )
    (config,) = (r.config for r in eval_data.cohort.runs if r.id == run)
    share, after = (evaluation.settings[name] for name in COLLAPSE)
    ranks = {step: rank for step, rank in _ranks(eval_data, run).items() if step >= after * end}
    metrics = rise | collapse(ranks, share)
    if not config.imported and not math.isnan(rise["best_step"]):
        rate = optimizer.learning_rate(optimizer.hyper(config), np.array(rise["best_step"]))
        metrics["learning_rate_at_best"] = float(rate) / config.optimizer.learning_rate
    return Measured(metrics, {"checkpoints": sorted(losses)})


def rise_after_best(documents: Mapping[int, Sequence[Mapping[str, Sequence[float]]]]) -> dict[str, float]:
    """Return how far the loss at the last step lies above the best, from summed nats and tokens by document.

    Args:
      documents: for each step, of each domain, `nats` and `tokens` of its documents; domains have equal weight.

    Returns:
      best_step, rise (nats per token), rise_standard_error, saturated (1 or 0); NaN where there are fewer than two
      steps, or a loss is missing.
    """
    steps = sorted(documents)
    nan = dict.fromkeys(("best_step", "rise", "rise_standard_error", "saturated"), math.nan)
    if len(steps) < 2:
        return nan
    nats = {step: [np.array(domain["nats"], float) for domain in documents[step]] for step in steps}
    tokens = [np.array(domain["tokens"], float) for domain in documents[steps[-1]]]
    loss = {s: float(np.mean([x.sum() / t.sum() for x, t in zip(nats[s], tokens, strict=True)])) for s in steps}
    if not all(map(math.isfinite, loss.values())):
        return nan
    best, last = min(steps, key=lambda s: (loss[s], s)), steps[-1]
    errors = [
        float(standard_error((after - before)[None], t)[0])
        for after, before, t in zip(nats[last], nats[best], tokens, strict=True)
    ]
    rise, error = loss[last] - loss[best], math.sqrt(sum(e**2 for e in errors)) / len(errors)
    return {
        "best_step": float(best),
        "rise": rise,
        "rise_standard_error": error,
        "saturated": float(rise > 2 * error) if math.isfinite(error) else math.nan,
    }


def collapse(rank_by_step: Mapping[int, float], share: float) -> dict[str, float]:
    """Return when a rank, measured at some steps, first fell below `share` of its highest value so far.

    Returns:
      highest_rank and its highest_rank_step, collapse_step (NaN if it never did), rank_fall: 1 - last / highest.
    """
    ranks = {s: r for s, r in sorted(rank_by_step.items()) if math.isfinite(r)}
    if not ranks:
        return dict.fromkeys(("highest_rank", "highest_rank_step", "collapse_step", "rank_fall"), math.nan)
    top, fell = 0.0, math.nan
    for step, rank in ranks.items():
        top = max(top, rank)
        if rank < share * top:
            fell = float(step)
            break
    highest = max(ranks, key=lambda s: (ranks[s], -s))
    return {
        "highest_rank": ranks[highest],
        "highest_rank_step": float(highest),
        "collapse_step": fell,
        "rank_fall": 1 - list(ranks.values())[-1] / ranks[highest],
    }


def losses_behind(evaluation: Evaluation) -> dict[str, Any]:
    """Return the settings of the losses that a saturation is computed from."""
    return {k: v for k, v in evaluation.settings.items() if k not in COLLAPSE}


def _losses_by_step(eval_data: EvalData, run: str, evaluation: Evaluation) -> dict[int, Any]:
    """Return the losses by document stored by lm_loss, by step."""
    losses = Evaluation("lm_loss", "lm_loss", losses_behind(evaluation))
    stored = {s: read(eval_data.workdir, run, s, losses) for s in checkpoint.run_steps(eval_data.workdir, run)}
    return {step: result["documents"] for step, result in stored.items() if result is not None}


def _ranks(eval_data: EvalData, run: str) -> dict[int, float]:
    rows = read_jsonl(eval_data.workdir / "runs" / run / METRICS)
    return {row["step"]: row[RANK] for row in rows if row.get(RANK) is not None}


def cka(stack: ModelBatch, evaluation: Evaluation) -> list[Measured]:
    """Return linear CKA of the states of each layer, and the final ones, with those of the run's last checkpoint.

    On the first tokens of validation documents of the trained domains, each after a BOS. 1 means that a layer equals
    its final form up to rotation and scale. `layer_<i>` is after block i, before the final norm.
    """
    eval_data = stack.eval_data
    tokens_NL, points_P = _points(eval_data, evaluation.settings["tokens"])
    ends = {run.id: run.config.total_steps for run in eval_data.cohort.runs}
    last_M = eval_data.load_last(tuple(run for run, _ in stack.models))
    cka_MK = np.asarray(_similarity(eval_data.shape.model, tokens_NL, points_P, stack.params_M, last_M))
    names = [f"layer_{i}" for i in range(eval_data.shape.model.n_layers)] + ["final_states"]
    rows = [dict(zip(names, map(float, row_K), strict=True)) for row_K in cka_MK]
    return [
        Measured(row, {"points": len(points_P), "reference": ends[run]})
        for row, (run, _) in zip(rows, stack.models, strict=True)
    ]


def _points(eval_data: EvalData, count: int) -> tuple[Array, Array]:
    """Return windows `[N, L]` of the first documents, and the flat indices of their first `count` scored tokens."""
    text = eval_data.text
    domains = eval_data.shape.config.data.train_domains
    trained = [domain in domains or not domains for domain in text.domains]
    rows = np.flatnonzero(np.array(trained)[text.domain_K[text.document_N]])
    ends_N = np.cumsum(text.weights_NL[rows].sum(axis=1))
    rows = rows[: int(np.searchsorted(ends_N, count)) + 1]
    return jnp.asarray(text.inputs_NL[rows]), jnp.asarray(np.flatnonzero(text.weights_NL[rows])[:count])


@functools.partial(jax.jit, static_argnames="config")
def _similarity(config: ModelConfig, tokens_NL: Array, points_P: Array, params_M: Any, last_M: Any) -> Array:
    def states(params: Any) -> list[Array]:
        hidden = model.hidden(config, params, tokens_NL, layers=True)
        return [x_NLD.reshape(-1, x_NLD.shape[-1])[points_P] for x_NLD in (*hidden.layers, hidden.final_BLD)]

    def one(params: Any, last: Any) -> Array:
        return jnp.stack([linear_cka(x_PD, y_PD) for x_PD, y_PD in zip(states(params), states(last), strict=True)])

    return over_members(one)(params_M, last_M)
