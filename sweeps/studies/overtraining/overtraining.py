"""Does more pre-training make models worse to fine-tune, and at which fine-tuning rates?

    olmo-jax plan --config=overtraining:cpu
    olmo-jax run --config=overtraining:cpu --workdir=runs/overtraining

The argument is a scale, then `seeds=K` for K trunks (5 or more; 5 by default):

    smoke   takes seconds; its results mean nothing
    cpu     minutes on a laptop
    gpu     models of width 256, budgets as 4, 8, 16, 32 and 64, for one GPU (not measured)

A trunk of each seed trains at a constant rate. At each budget its rate decays to zero over the last tenth, in a branch,
and the model is fine-tuned on code at every rate of a grid. Only the tokens differ between the budgets: not the shape
of the schedule, and not how much of it is a decay.

Claim: beyond some number of tokens, fine-tuned models get worse, on what they were fine-tuned on and on everything
else (Springer et al., arXiv 2503.19206). Sizes are ours; the budgets of `gpu` have the ratios, and the fine-tuning
rates the values, of public settings next door (methods.md, section 7).
"""

from ml_collections import ConfigDict

from eval.config import EvalConfig, FinetuneConfig, QuantizeConfig
from sweeps.planning.grid import chain, seeds
from sweeps.planning.plan import sweep_config
from sweeps.studies.anneal import trunks
from sweeps.studies.anneal.trunks import Scale

_SHARE = 0.1

SCALES = {
    "smoke": Scale(16, 1, 280, 16, 4, (20, 40), (3e-3,), 0.4, 256),
    "cpu": Scale(64, 2, 1024, 64, 8, (200, 400, 800, 1600, 3200), (2e-3,), 8.0, 4096),
    "gpu": Scale(256, 4, 8192, 256, 32, (2000, 4000, 8000, 16000, 32000), (1e-3,), 400.0, 32768),
}
_RATES = {
    "smoke": (1e-3,),
    "cpu": (1e-4, 3e-4, 1e-3, 3e-3),
    "gpu": (1e-4, 3e-4, 5e-4, 8e-4),
}
_TUNING_STEPS = {"smoke": 2, "cpu": 100, "gpu": 400}


def get_config(argument: str = "cpu") -> ConfigDict:
    name, count = trunks.read(argument, "overtraining.py", SCALES)
    scale = SCALES[name]
    (rate,) = scale.rates
    train = trunks.train_config(scale, [trunks.start(budget, _SHARE) for budget in scale.budgets])
    ends = [trunks.end(scale, rate, budget, _SHARE) | {"name": "decayed"} for budget in scale.budgets]
    grid = seeds(chain([trunks.trunk(rate)], ends), count, ("init_seed", "data_seed"))
    tuning = FinetuneConfig(
        targets=("code",),
        tokens=_TUNING_STEPS[name] * scale.batch * scale.length,
        batch_size=scale.batch,
        learning_rates=_RATES[name],
        points=1,
    )
    evaluation = EvalConfig(
        tokens_per_domain=scale.tokens_per_domain, quantize=QuantizeConfig(bits=()), finetune=tuning
    )
    return sweep_config(train, grid, evaluation)
