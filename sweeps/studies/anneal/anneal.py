"""What makes models hard to quantise and forgetful: tokens, the decay of the learning rate, or its peak?

    olmo-jax plan --config=anneal:cpu
    olmo-jax run --config=anneal:cpu --workdir=runs/anneal

The argument is a scale, then `seeds=K` for K trunks per peak rate (5 or more; 5 by default):

    smoke   takes seconds; its results mean nothing
    cpu     minutes on a laptop
    gpu     models of width 256, for one GPU (not measured)

A trunk of each seed and peak learning rate trains at a constant rate. At each token budget it is looked at in several
ways, all of which have seen the same text: as it is; with the rate decayed to zero over the last tenth or half of the
budget, with and without sharpness-aware minimisation; as the mean of its last checkpoints; and as its moving average.
So tokens, decay and rate are crossed, and every comparison is within a trunk or between trunks of one seed.

Claims it bears on: decay, not tokens, makes models hard to quantise (Catalan-Tatjer et al., arXiv 2510.06213); more
tokens make them forget (Springer et al., arXiv 2503.19206); sharpness-aware training and short annealing protect
(Watts et al., arXiv 2605.02105). Sizes and doses are ours.
"""

from ml_collections import ConfigDict

from eval.config import EvalConfig, FinetuneConfig, GroupsConfig, PerturbConfig, QuantizeConfig
from eval.evaluators.curvature import CurvatureConfig
from sweeps.analysis.contrast import LEAST_SEEDS
from sweeps.planning.grid import Grid, chain, seeds
from sweeps.planning.plan import sweep_config
from sweeps.studies.anneal import trunks
from sweeps.studies.anneal.trunks import Scale

# Shares of the budget over which the rate decays; 0: the trunk as it is.
_DECAYS = (0.1, 0.5)
_RHO = 0.05  # as Watts et al.
_AVERAGED = 4  # checkpoints
_EMA = 0.99

SCALES = {
    "smoke": Scale(16, 1, 280, 16, 4, (20,), (3e-3,), 0.4, 256),
    "cpu": Scale(64, 2, 1024, 64, 8, (480, 960, 1920), (1e-3, 4e-3), 8.0, 4096),
    "gpu": Scale(256, 4, 8192, 256, 32, (4000, 8000, 16000), (3e-4, 1e-3), 400.0, 32768),
}


def get_config(argument: str = "cpu") -> ConfigDict:
    name, count = trunks.read(argument, "anneal.py", SCALES)
    scale = SCALES[name]
    starts = {trunks.start(budget, share) for budget in scale.budgets for share in (0, *_DECAYS)}
    spaced = {budget - i * _spacing(scale) for budget in scale.budgets for i in range(_AVERAGED)}
    train = trunks.train_config(scale, starts | spaced, _EMA)
    grid = seeds(_points(scale), count, ("init_seed", "data_seed"))
    return sweep_config(train, grid, _evaluation(scale, name), notes=_notes(count))


def _spacing(scale: Scale) -> int:
    """Return the steps between the checkpoints that are averaged."""
    return max(1, min(scale.budgets) // 40)


def _points(scale: Scale) -> Grid:
    ends = [end for rate in scale.rates for budget in scale.budgets for end in _ends(scale, rate, budget)]
    return chain([trunks.trunk(rate) for rate in scale.rates], ends)


def _ends(scale: Scale, rate: float, budget: int) -> Grid:
    """Return the branches of a trunk that end at a budget of steps."""
    constant = trunks.end(scale, rate, budget)
    points: Grid = [
        constant | {"name": "stable", "branch.average_last": 1},
        constant | {"name": "mean", "branch.average_last": _AVERAGED},
        constant | {"name": "ema", "branch.ema": True},
    ]
    for share in _DECAYS:
        decayed = trunks.end(scale, rate, budget, share)
        points += [decayed | {"name": "decayed"}, decayed | {"name": "sam", "optimizer.sam_rho": _RHO}]
    return points


def _evaluation(scale: Scale, name: str) -> EvalConfig:
    smoke = name == "smoke"
    tuning = FinetuneConfig(
        targets=("code",),
        tokens=(2 if smoke else 50) * scale.batch * scale.length,
        batch_size=scale.batch,
        learning_rates=(1e-3,),
        points=1,
    )
    if smoke:
        quantize = QuantizeConfig(bits=(3,), methods=("gptq",), calibration_tokens=512)
        return EvalConfig(tokens_per_domain=scale.tokens_per_domain, quantize=quantize, finetune=tuning)
    return EvalConfig(
        tokens_per_domain=scale.tokens_per_domain,
        quantize=QuantizeConfig(
            bits=(4, 3),
            methods=("gptq",),
            calibration_tokens=8192,
            groups=GroupsConfig(bits=(3,), size=32, calibration_tokens=8192, document_tokens=64),
        ),
        finetune=tuning,
        perturb=PerturbConfig(relative=(0.1,), draws=2),
        curvature=CurvatureConfig(sequences=8, draws=2, lanczos_steps=8),
    )


def _notes(count: int) -> list[str]:
    if count < LEAST_SEEDS:
        return [f"{count} seeds: no interval is computed for fewer than {LEAST_SEEDS}"]
    return ["every contrast is paired: within a trunk, or between trunks of one seed; n is the number of seeds"]
