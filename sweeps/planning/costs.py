"""What a sweep will cost and what it can find, told before it runs: the lines of `olmo-jax plan`."""

import collections
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from olmo_jax.cohort import Cohort, Run, checkpoint_steps
from olmo_jax.config import OptimizerConfig, TrainConfig
from olmo_jax.execution import flops
from olmo_jax.model import parameter_count
from olmo_jax.optimizer import cumulative_weight_decay
from sweeps.planning.plan import Plan, configuration

_ALPHA, _POWER = 0.05, 0.8
_QUANTILES = 4000


def lines(plan: Plan, training_tokens: Mapping[str, tuple[float, str]], rate: float, told: str) -> list[str]:
    """Each cohort with its runs, then the totals and what the replicates can detect.

    Args:
      training_tokens: of a pass over each data set, by data.name, and a word on how sure that is; may lack some.
      rate: FLOP/s that hours are reckoned with. told: where that number is from.
    """
    shown = []
    for cohort in plan.cohorts:
        total, inner = parameter_count(cohort.shape.model)
        stacks = sum(stack.id == cohort.id for stack in plan.stacks)
        shown.append(
            f"cohort {cohort.id}: {len(cohort.runs)} runs in {len(cohort.segment_ends)} segment(s)"
            f"{f', {stacks} stacks' if stacks > 1 else ''}, {total:,} parameters each ({inner:,} without embeddings)"
        )
        shown += [_line(run, training_tokens) for run in cohort.runs]
    return [*shown, *_totals(plan, rate, told), *(f"note: {note}" for note in plan.notes)]


def dose(config: TrainConfig) -> float:
    """Weight-decay dose of a whole run."""
    return _dose(config.optimizer, config.total_steps)


@functools.cache
def _dose(optimizer: OptimizerConfig, steps: int) -> float:
    unit = TrainConfig(tokens=steps * TrainConfig().tokens_per_step, optimizer=optimizer)
    return cumulative_weight_decay(unit, steps)


def run_flops(config: TrainConfig) -> float:
    """FLOPs of a whole run, by formula (flops.train_step)."""
    size = config.data.batch_size, config.data.sequence_length
    step = flops.train_step(config.model, *size, last=config.data.is_arithmetic)
    return float(step) * config.total_steps


def checkpoint_bytes(cohort: Cohort) -> float:
    """Of all of a cohort's checkpoints: parameters and two moments, float32, of each member that is still there."""
    each = 3 * 4 * parameter_count(cohort.shape.model)[0]
    return float(each * sum(len(cohort.active(step)) for step in checkpoint_steps(cohort)))


def detectable(replicates: Sequence[int]) -> float:
    """The smallest difference that is found, in standard deviations over seeds; infinite without replicates.

    Between two configurations of the median number of runs each, by a two-sided t test at 5 % with a power of 80 %, the
    noise being pooled over all configurations.

    Args:
      replicates: runs of each configuration.
    """
    freedom = sum(n - 1 for n in replicates)
    if freedom == 0:
        return math.inf
    import scipy.optimize  # a second's import, for this alone
    import scipy.stats

    n = sorted(replicates)[len(replicates) // 2]
    critical = scipy.stats.t.ppf(1 - _ALPHA / 2, freedom)

    # Averaged over the noise's estimate; scipy's non-central t fails far from 0, where few degrees of freedom lead.
    quantiles = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    threshold = critical * np.sqrt(scipy.stats.chi2.ppf(quantiles, freedom) / freedom)

    def lacking(z: float) -> float:
        found = scipy.stats.norm.sf(threshold - z) + scipy.stats.norm.cdf(-threshold - z)
        return _POWER - float(np.mean(found))

    return float(scipy.optimize.brentq(lacking, 0.0, 1000.0)) * math.sqrt(2 / n)


def _line(run: Run, training_tokens: Mapping[str, tuple[float, str]]) -> str:
    c = run.config
    there, told = training_tokens.get(c.data.name, (0.0, ""))
    epochs = f"{told}{c.total_steps * c.tokens_per_step / there:.3g} epochs  " if there else ""
    if c.data.is_arithmetic:
        epochs = f"{c.data.arithmetic.train_equations:,} of {c.data.arithmetic.equations:,} equations  "
    return (
        f"  {run.id}  {c.total_steps:,} steps  {c.tokens:,} tokens  {epochs}"
        f"learning rate {c.optimizer.learning_rate:g}  "
        f"weight decay {c.optimizer.weight_decay:g} (dose {dose(c):.3g})  {run_flops(c):.3g} FLOPs  "
        f"seeds {c.init_seed}/{c.data_seed}"
    )


def _totals(plan: Plan, rate: float, told: str) -> list[str]:
    runs = plan.runs
    tokens = sum(run.config.total_steps * run.config.tokens_per_step for run in runs)
    work = sum(run_flops(run.config) for run in runs)
    written = sum(map(checkpoint_bytes, plan.cohorts))
    segments = sum(len(cohort.segment_ends) for cohort in plan.stacks or plan.cohorts)
    replicates = collections.Counter(configuration(run.config) for run in runs)
    difference = detectable(list(replicates.values()))
    n = sorted(replicates.values())[len(replicates) // 2]
    found = (
        "no configuration has two seeds: no effect can be told from noise"
        if math.isinf(difference)
        else f"a difference of {difference:.2g} standard deviations over seeds between two configurations (of {n} "
        f"run(s) each; noise of {len(runs) - len(replicates)} degrees of freedom) is found 4 times in 5, at p < .05"
    )
    return [
        f"{len(runs)} runs in {len(plan.cohorts)} cohort(s), {segments} compiled program(s), {tokens:,} tokens",
        f"{work:.3g} FLOPs, {work / rate / 3600:.3g} hours at {rate:.3g} FLOP/s ({told})",
        f"{written / 1e9:.3g} GB of checkpoints at most",
        found,
    ]
