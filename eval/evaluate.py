"""Every evaluation of a cohort's checkpoints: what is done already is skipped, the rest is batched over members."""

import collections
import dataclasses
import json
import math
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from eval.config import EvalConfig
from eval.finetune import Tuned, finetune
from eval.lm_loss import lay_out, lm_loss, read_documents, summary
from eval.quantize import quantize_params
from olmo_jax import checkpoint
from olmo_jax.cohort import Cohort
from olmo_jax.data.shards import TokenIndex
from olmo_jax.data.windows import unigram_loss
from olmo_jax.metrics import write_json

Documents = dict[str, list[np.ndarray]]


class Task(NamedTuple):
    """One evaluation of one checkpoint of a cohort, for the runs that lack it.

    `settings` are what its numbers depend on beside the models: a stored result with others is done again.
    """

    evaluation: str
    step: int
    runs: tuple[str, ...]
    settings: dict[str, Any]


def settings_of(config: EvalConfig) -> dict[str, dict[str, Any]]:
    """Every evaluation of a configuration with its settings, as JSON has them, in the order in which they are done."""
    text = {"tokens_per_domain": config.tokens_per_domain, "set_apart": config.finetune.domain}
    found = {"lm_loss": text, "unigram": text}
    found |= {f"round_to_nearest_{bits}": text | {"bits": bits} for bits in config.quantize_bits}
    if domain := config.finetune.domain:
        tuning = {k: v for k, v in dataclasses.asdict(config.finetune).items() if k != "learning_rates"}
        for rate in config.finetune.learning_rates:
            # The domain is the user's text, and the name is that of a file.
            name = f"finetune_{urllib.parse.quote(domain, safe=' ')}_lr{rate:g}"
            found[name] = text | tuning | {"learning_rate": rate}
    return found


def tasks(workdir: epath.Path, cohort: Cohort, config: EvalConfig) -> list[Task]:
    """What is still to do for a cohort, checkpoint by checkpoint."""
    ends = {run.id: run.config.total_steps for run in cohort.runs}
    found = []
    for step, members in checkpoint.member_lists(checkpoint.directory(workdir, cohort.folder)).items():
        final = [run for run in members if ends[run] == step]
        for evaluation, settings in settings_of(config).items():
            wanted = members if evaluation == "lm_loss" and config.all_checkpoints else final
            missing = tuple(r for r in wanted if _stored(workdir, r, evaluation, step, settings) is None)
            if missing:
                found.append(Task(evaluation, step, missing, settings))
    return found


def evaluate(
    workdir: epath.Path, cohort: Cohort, index: TokenIndex, config: EvalConfig, go_on: Callable[[Task], bool]
) -> bool:
    """Does what `tasks` lists and writes each run's result whole; `go_on` is asked after each task.

    Returns True if all is done, False if `go_on` ended it.
    """
    todo = tasks(workdir, cohort, config)
    if not todo:
        return True
    learnt = {*cohort.shape.train_domains, config.finetune.domain} if cohort.shape.train_domains else ()
    documents = read_documents(index, config.tokens_per_domain, tuple(learnt))
    # Tasks for the same runs at the same step share a stack: it is read once, and one shape is one compiled program.
    groups: dict[tuple[int, tuple[str, ...]], list[Task]] = collections.defaultdict(list)
    for task in todo:
        groups[task.step, task.runs].append(task)
    for (step, runs), together in groups.items():
        members, params_M = checkpoint.load_stack(workdir, cohort.folder, step)
        places = np.array([members.index(run) for run in runs])
        params_M = jax.tree.map(lambda x, at=places: jax.numpy.asarray(x[at]), params_M)
        for task, metrics_M, tokens, seconds in _carry_out(together, cohort, params_M, index, documents, config):
            for run, metrics in zip(runs, metrics_M, strict=True):
                result = {
                    "evaluation": task.evaluation,
                    "run_id": run,
                    "step": step,
                    "settings": task.settings,
                    "fingerprint": cohort.shape.data_fingerprint,
                    "metrics": {k: v if np.isfinite(v) else None for k, v in metrics.items()},
                    "tokens": tokens,
                    "seconds": round(seconds, 3),
                }
                path = _path(workdir, run, task.evaluation, step)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, result)
            if not go_on(task):
                return False
    return True


def read_results(workdir: epath.Path, run: str, step: int, config: EvalConfig) -> dict[str, dict[str, Any]]:
    """The stored results of a run at a step, by evaluation: those of this configuration, with its settings."""
    found = {e: _stored(workdir, run, e, step, settings) for e, settings in settings_of(config).items()}
    return {evaluation: result for evaluation, result in found.items() if result is not None}


def _carry_out(
    now: list[Task], cohort: Cohort, params_M: Any, index: TokenIndex, documents: Documents, config: EvalConfig
) -> Iterator[tuple[Task, list[dict[str, float]], dict[str, int], float]]:
    """Yields (task, metrics of each member, tokens by domain, seconds) for the tasks of one step."""
    shape, batch = cohort.shape, config.batch_size
    text = lay_out(documents, index.eos_id, shape.sequence_length)
    members = len(jax.tree.leaves(params_M)[0])

    def losses(params_M: Any) -> tuple[list[dict[str, float]], dict[str, int]]:
        measured = lm_loss(shape.model, params_M, text, batch)
        rows = [{d: float(v[m]) for d, v in measured.by_domain.items()} for m in range(members)]
        return [summary(row, shape.train_domains, config.finetune.domain) for row in rows], measured.tokens

    tuned: list[Tuned] = []
    before: list[dict[str, float]] = []
    for task in now:
        start = time.monotonic()
        if task.evaluation == "lm_loss":
            metrics_M, tokens = losses(params_M)
            before = metrics_M
        elif task.evaluation == "unigram":
            metrics_M, tokens = _unigram(index, documents, shape.train_domains, config, members)
        elif task.evaluation.startswith("round_to_nearest"):
            quantized_M = jax.vmap(lambda p, bits=task.settings["bits"]: quantize_params(p, bits))(params_M)
            metrics_M, tokens = losses(quantized_M)
        else:
            tuned = tuned or finetune(config.finetune, shape, params_M, index)
            before = before or losses(params_M)[0]
            place = config.finetune.learning_rates.index(task.settings["learning_rate"])
            metrics_M, tokens = losses(tuned[place].params_M)
            for after, old, diverged_at in zip(metrics_M, before, tuned[place].diverged_at_M, strict=True):
                after["forgetting"] = after["in_domain"] - old["in_domain"]
                if diverged_at >= 0:  # the parameters before it blew up would pass for a gentle fine-tuning
                    after.update(dict.fromkeys(after, math.nan))
        yield task, metrics_M, tokens, time.monotonic() - start


def _unigram(
    index: TokenIndex, documents: Documents, train_domains: tuple[str, ...], config: EvalConfig, members: int
) -> tuple[list[dict[str, float]], dict[str, int]]:
    """Loss of a unigram model of the training tokens on the same validation tokens: what any model should beat."""
    rows = {d: unigram_loss(index, train_domains, documents[d]) for d in documents}
    tokens = {d: sum(map(len, documents[d])) for d in documents}
    return [summary(rows, train_domains, config.finetune.domain)] * members, tokens


def _stored(
    workdir: epath.Path, run: str, evaluation: str, step: int, settings: dict[str, Any]
) -> dict[str, Any] | None:
    path = _path(workdir, run, evaluation, step)
    if not path.exists():
        return None
    result = json.loads(path.read_text())
    return result if result["settings"] == settings else None


def _path(workdir: epath.Path, run: str, evaluation: str, step: int) -> epath.Path:
    return workdir / "runs" / run / "results" / f"{evaluation}@{step}.json"
