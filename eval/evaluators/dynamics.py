"""Measure what changes over a run's checkpoints: saturation, rank collapse, and similarity to the final states."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from eval.columns import Result
from eval.eval_data import EvalData, ModelBatch
from eval.evaluator import Evaluation, Evaluator, Measured, evaluator
from eval.lm_loss import standard_error
from eval.results import read
from geometry.similarity import linear_cka
from olmo_jax import checkpoint, model, optimizer
from olmo_jax.columns import NATS
from olmo_jax.config import ModelConfig
from olmo_jax.config.field import Bound, Role, at_least, setting
from olmo_jax.config.validation import Settings
from olmo_jax.execution.members import over_members
from olmo_jax.logs.metrics import METRICS, read_jsonl

RANK = "unembedding/effective_rank"
# The settings of `saturation` besides those of the losses that it is computed from.
_COLLAPSE = ("collapse", "collapse_after")


@dataclasses.dataclass(frozen=True)
class DynamicsConfig(Settings):
    """What changes over a run's checkpoints."""

    saturation: bool = setting(
        True,
        Role.OBSERVATION,
        "Whether the loss rose after its best, and when the unembedding's rank fell; at the last checkpoint.",
    )
    collapse: float = setting(
        0.8,
        Role.OBSERVATION,
        "The rank counts as collapsed once it is below this share of its highest earlier value.",
        bound=Bound("(0, 1)", "needs a share between 0 and 1", lambda share: 0 < share < 1),
        unit="share",
    )
    collapse_after: float = setting(
        0.2,
        Role.OBSERVATION,
        "Share of the steps after which a collapse is looked for, since every rank falls from its value at random "
        "initialisation.",
        bound=Bound("[0, 1)", "needs a share in [0, 1)", lambda share: 0 <= share < 1),
        unit="share",
    )
    cka: bool = setting(
        False,
        Role.OBSERVATION,
        "Linear CKA of each layer's states with those of the last checkpoint, at every checkpoint.",
    )
    cka_tokens: int = setting(
        1024,
        Role.OBSERVATION,
        "Number of states from which CKA is computed.",
        bound=at_least(2, "needs at least 2"),
        unit="tokens",
    )


@evaluator
class Cka(Evaluator[DynamicsConfig]):
    """Linear CKA of the states of each layer, and the final ones, with those of the run's last checkpoint.

    It is computed on the first tokens of validation documents of the trained domains, each document after a BOS. 1
    means that a layer equals its final form up to rotation and scale. `layer_<i>` is after block i, before the final
    norm.
    """

    kind = "cka"
    of_whole_runs = True
    names = "cka"
    results = (
        Result(
            "(?P<states>.+)", "Linear CKA of {states} with its states at the run's last checkpoint", "", "evaluation"
        ),
    )
    section = "dynamics"
    config_type = DynamicsConfig

    def evaluations(self) -> list[Evaluation]:
        settings = self.text.text_settings | {"tokens": self.config.cka_tokens}
        return [Evaluation(self.kind, self.kind, settings, everywhere=True)] if self.config.cka else []

    def is_current(self, result: dict[str, Any], steps: list[int]) -> bool:
        return result.get("reference") == steps[-1]

    def is_ready(self, steps: list[int], end: int) -> bool:
        return steps[-1] == end

    def measure(self, models: ModelBatch, evaluation: Evaluation) -> list[Measured]:
        data = models.eval_data
        tokens_NL, points_P = _points(data, evaluation.settings["tokens"])
        ends = {run.id: run.config.total_steps for run in data.cohort.runs}
        last_M = data.load_last(tuple(run for run, _ in models.models))
        cka_MK = np.asarray(_similarity(data.shape.model, tokens_NL, points_P, models.params_M, last_M))
        names = [f"layer_{i}" for i in range(data.shape.model.n_layers)] + ["final_states"]
        rows = [dict(zip(names, map(float, row_K), strict=True)) for row_K in cka_MK]
        return [
            Measured(row, {"points": len(points_P), "reference": ends[run]})
            for row, (run, _) in zip(rows, models.models, strict=True)
        ]


@evaluator
class Saturation(Evaluator[DynamicsConfig]):
    """Whether in-domain loss rose after its best, and when the unembedding's rank fell, for completed runs.

    `rise` is the final loss minus the best of all checkpoints, with its paired standard error by document; `saturated`
    is 1 if it exceeds two standard errors, else 0 (methods.md section 5). The best is chosen on the same documents, so
    that the rise is at least 0 and slightly too large: two errors aren't a test at the 5 % level.
    `learning_rate_at_best` is the learning rate at the best step, over its peak.
    """

    kind = "saturation"
    of_whole_runs = True
    names = "saturation"
    results = (
        Result("saturated", "1 where the rise is more than two standard errors, else 0", "", "evaluation"),
        Result("best_step", "Step of the lowest in-domain loss of all checkpoints", "steps", "evaluation"),
        Result("rise", "Final in-domain loss minus the lowest of all checkpoints", NATS, "evaluation"),
        Result("rise_standard_error", "Paired standard error, by document, of the rise", NATS, "evaluation"),
        Result(
            "highest_rank",
            "Highest effective rank of the unembedding after the first part of training",
            "",
            "evaluation",
        ),
        Result("highest_rank_step", "Step of the highest effective rank", "steps", "evaluation"),
        Result(
            "collapse_step", "Step at which that rank first fell below a share of its highest", "steps", "evaluation"
        ),
        Result("rank_fall", "1 minus the last effective rank over the highest", "", "evaluation"),
        Result("learning_rate_at_best", "Learning rate at the best step, over its peak", "", "evaluation"),
    )
    section = "dynamics"
    config_type = DynamicsConfig

    def evaluations(self) -> list[Evaluation]:
        if not (self.config.saturation and self.text.all_checkpoints):
            return []
        losses = Evaluation("lm_loss", "lm_loss", self.text.text_settings, everywhere=True)
        settings = self.text.text_settings | {name: getattr(self.config, name) for name in _COLLAPSE}
        return [Evaluation(self.kind, self.kind, settings, at_the_end=True, requires=(losses,))]

    def is_current(self, result: dict[str, Any], steps: list[int]) -> bool:
        return result.get("checkpoints") == steps

    def measure(self, models: ModelBatch, evaluation: Evaluation) -> list[Measured]:
        return [_saturation(models.eval_data, run, step, evaluation) for run, step in models.models]


def _saturation(data: EvalData, run: str, end: int, evaluation: Evaluation) -> Measured:
    losses = _losses_by_step(data, run, evaluation.requires[0])
    domains = data.shape.config.data.train_domains or data.text.domains
    rise = rise_after_best(
        {step: [by_domain[d] for d in domains if d in by_domain] for step, by_domain in losses.items()}
    )
    (config,) = (r.config for r in data.cohort.runs if r.id == run)
    share, after = (evaluation.settings[name] for name in _COLLAPSE)
    ranks = {step: rank for step, rank in _ranks(data, run).items() if step >= after * end}
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


def _losses_by_step(data: EvalData, run: str, losses: Evaluation) -> dict[int, Any]:
    """Return the losses by document stored by lm_loss, by step."""
    stored = {step: read(data.workdir, run, step, losses) for step in checkpoint.run_steps(data.workdir, run)}
    return {step: result["documents"] for step, result in stored.items() if result is not None}


def _ranks(data: EvalData, run: str) -> dict[int, float]:
    rows = read_jsonl(data.workdir / "runs" / run / METRICS)
    return {row["step"]: row[RANK] for row in rows if row.get(RANK) is not None}


def _points(data: EvalData, count: int) -> tuple[Array, Array]:
    """Return windows `[N, L]` of the first documents, and the flat indices of their first `count` scored tokens."""
    text = data.text
    domains = data.shape.config.data.train_domains
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
