"""Measure how long multiple choice takes for all models of a sweep, and check its scores against one row per choice.

    python -m benchmarks.tasks demo                          (HellaSwag, 500 items; a minute for the demo's 12 models)
    python -m benchmarks.tasks demo --task=piqa --items=200 --compared=50

It times what `olmo-jax evaluate` does with a task once its items are laid out: the first call, which compiles the
programs, and a second one. It compares the log-likelihoods of some items with those of each choice after its context in
a separate row, without packing and in one batch per choice.
"""

import argparse
import functools
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from eval import tasks
from eval.config import EvalConfig
from eval.eval_data import EvalData, ModelBatch
from eval.evaluators.tasks import drawn_items, validation_rows
from olmo_jax import model
from olmo_jax.config import ModelConfig
from olmo_jax.data.shards import TokenIndex
from olmo_jax.data.sources import task_items
from olmo_jax.data.tokenizer import Tokenizer
from olmo_jax.errors import UserError
from olmo_jax.storage.run_files import data_root
from sweeps.planning.record import recorded_plan


def stacks(workdir: epath.Path) -> Iterator[ModelBatch]:
    """Yield the last checkpoints of all runs, one stack per cohort."""
    plan = recorded_plan(workdir)
    for cohort in plan.stacks:
        index = TokenIndex.load(data_root(workdir, cohort.runs[0].config) / cohort.shape.data_name)
        models = tuple((run.id, run.config.total_steps) for run in cohort.runs)
        yield ModelBatch(EvalData(workdir, cohort, index, EvalConfig()), models)


def in_rows_of_their_own(
    config: ModelConfig, params_M: Any, items: list[task_items.Item], tokenizer: Tokenizer, length: int
) -> np.ndarray:
    """Return the log-likelihoods `[M, C]` in nats of all choices, each read in a separate row of `length` tokens."""
    nats_CM = []
    for item in items:
        for context, choice in zip(item.contexts, item.choices, strict=True):
            kept = context.rstrip()  # the token of a word includes the space before it
            before, targets = tokenizer.encode([kept, context[len(kept) :] + choice])
            if len(targets) > length:
                raise UserError(f"item {item.id}: a choice has {len(targets)} tokens, more than {length}")
            before = before[max(0, len(before) + len(targets) - length) :]
            nats_CM.append(_nats(config, params_M, np.array([tokenizer.eos_id, *before]), targets, length))
    return -np.array(nats_CM).T


def _nats(config: ModelConfig, params_M: Any, before: np.ndarray, targets: np.ndarray, length: int) -> np.ndarray:
    read = np.concatenate([before, targets[:-1]]).astype(np.int32)
    log_p_MLV = _log_probabilities(config, params_M, np.pad(read, (0, length - len(read)))[None])
    log_p_MT = np.asarray(log_p_MLV)[:, np.arange(len(before) - 1, len(read)), targets]
    return -log_p_MT.astype(float).sum(axis=1)


@functools.partial(jax.jit, static_argnums=0)
def _log_probabilities(config: ModelConfig, params_M: Any, tokens_1L: Any) -> jax.Array:
    def one(params: Any) -> jax.Array:
        return jax.nn.log_softmax(model.apply(config, params, tokens_1L).logits_BLV[0])

    return jax.lax.map(one, params_M)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=epath.Path, help="working directory of a trained sweep")
    parser.add_argument("--task", default="hellaswag", help="a task that config.evaluation.tasks.names may name")
    parser.add_argument("--items", type=int, default=500, help="number of its validation items (default: 500)")
    parser.add_argument(
        "--compared", type=int, default=20, help="items that are also scored in separate rows (default: 20)"
    )
    asked = parser.parse_args()
    try:
        measure(asked.workdir, asked.task, asked.items, asked.compared)
    except UserError as error:
        parser.exit(1, f"{error}\n")


def measure(workdir: epath.Path, task: str, items: int, compared: int) -> None:
    """Print the seconds for all models, and how far the scores are from those of separate rows."""
    models, seconds, apart, chosen = 0, np.zeros(2), 0.0, []
    for stack in stacks(workdir):
        shape, params_M = stack.eval_data.shape, stack.params_M
        rows = stack.eval_data.once(validation_rows, task, items, shape.sequence_length)
        for again in range(2):
            start = time.perf_counter()
            scores = tasks.score(shape.model, params_M, rows, stack.eval_data.config.batch_size)
            seconds[again] += time.perf_counter() - start
        models += len(stack.models)
        chosen += [of["accuracy"] for of in tasks.metrics(rows, scores)]
        some = drawn_items(task, items)[:compared]
        tokenizer, length = stack.eval_data.tokenizer, shape.sequence_length
        expected_MC = in_rows_of_their_own(shape.model, params_M, some, tokenizer, length)
        found_MC = scores.log_likelihood_MC[:, : expected_MC.shape[1]]
        apart = max(apart, float(np.abs(found_MC - expected_MC).max()))
    print(f"{task}: {items} items x {models} models on {jax.devices()[0].device_kind}")
    print(f"{seconds[0]:.1f} s with compilation; {seconds[1]:.1f} s the second time")
    print(f"log-likelihoods are within {apart:.1e} nats of those in separate rows ({compared} items)")
    print(f"accuracy {np.mean(chosen):.4f} over all models, from {min(chosen):.3f} to {max(chosen):.3f}")


if __name__ == "__main__":
    main()
