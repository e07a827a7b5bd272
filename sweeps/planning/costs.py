"""What a sweep will cost and which effects it can detect, before it runs: the lines of `olmo-jax plan`."""

import collections
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from olmo_jax.cohort import Cohort, Run, checkpoint_steps
from olmo_jax.config import OptimizerConfig, TrainConfig
from olmo_jax.config.model import head_count
from olmo_jax.execution import flops
from olmo_jax.model import parameter_count
from olmo_jax.optimizer import cumulative_weight_decay
from sweeps.planning import branches
from sweeps.planning.plan import Plan, configuration

_ALPHA, _POWER = 0.05, 0.8
_QUANTILES = 4000


def lines(plan: Plan, training_tokens: Mapping[str, tuple[float, str]], rate: float, rate_source: str) -> list[str]:
    """Return one line per cohort and per run, then the totals and the effect that the replicates can detect.

    Args:
      training_tokens: for each data.name, the tokens of one pass over the data set, and "", "about " or "at least ";
        data sets of unknown size are missing.
      rate: FLOP/s used to estimate hours. rate_source: where that number comes from.
    """
    cohort_lines = []
    planned = {run.id: run.config for run in plan.runs}
    for cohort in plan.cohorts:
        total, inner = parameter_count(cohort.shape.model)
        stacks = sum(stack.id == cohort.id for stack in plan.stacks)
        cohort_lines.append(
            f"cohort {cohort.id}: {len(cohort.runs)} runs in {len(cohort.segment_ends)} segment(s)"
            f"{f', {stacks} stacks' if stacks > 1 else ''}, {total:,} parameters each ({inner:,} without embeddings, "
            f"{head_count(cohort.shape.model):,} with the unembedding alone)"
        )
        cohort_lines += [_line(run, training_tokens, planned) for run in cohort.runs]
    cohort_lines += branches.tree(plan.runs)
    notes = [f"note: {note}" for note in plan.notes]
    return [*cohort_lines, *_totals(plan, rate, rate_source), *_too_many_epochs(plan, training_tokens), *notes]


def total_weight_decay(config: TrainConfig) -> float:
    """Return the cumulative weight decay of a run: the sum over its own steps of learning rate x weight decay."""
    return _total_weight_decay(config.optimizer, config.total_steps, config.branch.start_step)


@functools.cache
def _total_weight_decay(optimizer: OptimizerConfig, steps: int, start: int) -> float:
    unit = TrainConfig(tokens=steps * TrainConfig().tokens_per_step, optimizer=optimizer)
    return cumulative_weight_decay(unit, steps) - cumulative_weight_decay(unit, start)


def run_flops(config: TrainConfig) -> float:
    """Return the FLOPs of a whole run, of a branch from its start, by formula (flops.run_step)."""
    return float(flops.run_step(config)) * _own_steps(config)


def _own_steps(config: TrainConfig) -> int:
    """Return the steps that a run takes itself: of a branch, those after its start."""
    return config.total_steps - config.branch.start_step


def checkpoint_bytes(cohort: Cohort) -> float:
    """Return the size of a cohort's checkpoints, in bytes, at most: float32 parameters, two moments and an average."""
    copies = 4 if cohort.shape.config.checkpoint.ema_decay else 3
    each = copies * 4 * parameter_count(cohort.shape.model)[0]
    return float(each * sum(len(cohort.active(step)) for step in checkpoint_steps(cohort)))


def detectable(replicates: Sequence[int]) -> float:
    """Return the smallest detectable difference, in standard deviations over seeds; infinite without replicates.

    The difference is that between two configurations with the median number of runs each, in a two-sided t test at 5 %
    with a power of 80 %. The noise is pooled over all configurations.

    Args:
      replicates: the number of runs of each configuration.
    """
    freedom = sum(n - 1 for n in replicates)
    if freedom == 0:
        return math.inf
    import scipy.optimize  # takes a second to import, and only this function needs it
    import scipy.stats

    n = sorted(replicates)[len(replicates) // 2]
    critical = scipy.stats.t.ppf(1 - _ALPHA / 2, freedom)

    # Power is averaged over the estimate of the noise, since scipy's non-central t distribution fails far from 0, which
    # few degrees of freedom lead to.
    quantiles = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    threshold = critical * np.sqrt(scipy.stats.chi2.ppf(quantiles, freedom) / freedom)

    def missing_power(z: float) -> float:
        power = scipy.stats.norm.sf(threshold - z) + scipy.stats.norm.cdf(-threshold - z)
        return _POWER - float(np.mean(power))

    return float(scipy.optimize.brentq(missing_power, 0.0, 1000.0)) * math.sqrt(2 / n)


def _line(run: Run, training_tokens: Mapping[str, tuple[float, str]], planned: Mapping[str, TrainConfig]) -> str:
    c = run.config
    epoch_tokens, qualifier = training_tokens.get(c.data.name, (0.0, ""))
    passed = branches.tokens_of_text(c, planned)
    epochs = f"{qualifier}{passed / epoch_tokens:.3g} epochs  " if epoch_tokens else ""
    since = " since its start" if c.branch.parent else ""
    if c.data.is_arithmetic:
        epochs = f"{c.data.arithmetic.train_equations:,} of {c.data.arithmetic.equations:,} equations  "
    return (
        f"  {run.id}  {c.total_steps:,} steps  {c.tokens:,} tokens  {epochs}"
        f"learning rate {c.optimizer.learning_rate:g}  "
        f"weight decay {c.optimizer.weight_decay:g} (cumulative {total_weight_decay(c):.3g}{since})  "
        f"{run_flops(c):.3g} FLOPs  seeds {c.init_seed}/{c.data_seed}"
    )


def _too_many_epochs(plan: Plan, training_tokens: Mapping[str, tuple[float, str]]) -> list[str]:
    """Return a line for runs that training will refuse, since they pass over their text too often."""
    over: list[tuple[float, float, str]] = []
    planned = {run.id: run.config for run in plan.runs}
    for run in plan.runs:
        data = run.config.data
        epoch_tokens, qualifier = training_tokens.get(data.name, (0.0, ""))
        if not epoch_tokens:
            continue
        epochs = branches.tokens_of_text(run.config, planned) / epoch_tokens
        if epochs > data.max_epochs and not data.is_arithmetic:
            over.append((epochs, data.max_epochs, qualifier))
    if not over:
        return []
    most, allowed, qualifier = max(over)
    return [
        f"warning: {len(over)} run(s) pass over their text more often than config.train.data.max_epochs allows, at "
        f"most {'about ' if qualifier else ''}{most:.3g} times instead of {allowed:g}, and training "
        f"{'may refuse' if qualifier else 'refuses'} them; add text, lower tokens, or raise max_epochs"
    ]


def _totals(plan: Plan, rate: float, rate_source: str) -> list[str]:
    runs = plan.runs
    tokens = sum(_own_steps(run.config) * run.config.tokens_per_step for run in runs)
    work = sum(run_flops(run.config) for run in runs)
    written = sum(map(checkpoint_bytes, plan.cohorts))
    segments = sum(len(cohort.segment_ends) for cohort in plan.stacks or plan.cohorts)
    replicates = collections.Counter(configuration(run.config) for run in runs)
    difference = detectable(list(replicates.values()))
    n = sorted(replicates.values())[len(replicates) // 2]
    detectable_effect = (
        "no configuration has two seeds: no effect can be distinguished from noise"
        if math.isinf(difference)
        else f"a difference of {difference:.2g} standard deviations over seeds between two configurations (of {n} "
        f"run(s) each; noise of {len(runs) - len(replicates)} degrees of freedom) is detected 4 times in 5, at p < .05"
    )
    return [
        f"{len(runs)} runs in {len(plan.cohorts)} cohort(s), {segments} compiled program(s), {tokens:,} tokens",
        f"{work:.3g} FLOPs, {work / rate / 3600:.3g} hours at {rate:.3g} FLOP/s ({rate_source})",
        f"{written / 1e9:.3g} GB of checkpoints at most",
        detectable_effect,
    ]
