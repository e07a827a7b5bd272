"""Move the geometry of the unembedding on purpose, and see whether performance follows.

    olmo-jax plan --config=do_rank:cpu
    olmo-jax run --config=do_rank:cpu --workdir=runs/do-rank

The argument is a scale, then `seeds=K` for K pairs (5 or more; 6 by default):

    smoke   takes seconds; its results mean nothing
    cpu     minutes on a laptop
    gpu     models of width 256, for one GPU (not measured)

Every arm of ../docs/do-rank.md at three doses, paired with a control of the same seeds, all in one compiled program. In
the same sweep the control's batch size and weight decay vary, for the slope that an observational sweep would show.
Source: methods.md, section 6. Sizes and doses are ours.
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from eval.config import EvalConfig, FinetuneConfig, QuantizeConfig
from olmo_jax.config import (
    CheckpointConfig,
    OptimizerConfig,
    TrainConfig,
)
from sweeps.analysis.doses import LEAST_PAIRS, detectable
from sweeps.planning.grid import Grid, Point, chain, one_at_a_time, seeds
from sweeps.planning.plan import sweep_config
from sweeps.studies.argument import scale_and_seeds
from sweeps.studies.small import prose, small_model, small_probe

_SEEDS = 6
_METRICS = ("effective_rank_percent", "stable_rank", "mean_cosine", "isoscore", "partition_isotropy")
# Shares of D that a bounded rank keeps.
_SHARES = (0.75, 0.5, 0.25)
# Doses of the other arms; a negative penalty pushes the rank up.
_DOSES: dict[str, tuple[Any, ...]] = {
    "rank_penalty": (-0.3, 0.03, 0.3),
    "polar_decay": (0.3, 1.0, 3.0),
    "head_decay": (0.0, 1.0, 3.0),
    "head_rate": (0.3, 3.0, 10.0),
    "center_head": (True,),
    "mean_row": (0.3, 1.0, 3.0),
}


@dataclasses.dataclass(frozen=True)
class Scale:
    """Sizes [ours]. `decays`, `batches`: what varies in the observational runs besides the default."""

    width: int
    layers: int
    vocabulary: int
    length: int
    batch: int
    steps: int
    rate: float
    decay: float
    decays: tuple[float, ...]
    batches: tuple[int, ...]
    megabytes: float
    tokens_per_domain: int


SCALES = {
    "smoke": Scale(16, 1, 280, 16, 4, 6, 3e-3, 0.3, (0.03,), (8,), 0.4, 256),
    "cpu": Scale(64, 2, 1024, 64, 8, 500, 3e-3, 0.3, (0.03, 1.0, 3.0), (4, 16, 32), 4.0, 4096),
    "gpu": Scale(256, 4, 8192, 256, 32, 4000, 1e-3, 0.1, (0.01, 0.3, 1.0), (8, 128), 170.0, 32768),
}


def get_config(argument: str = "cpu") -> ConfigDict:
    name, count = scale_and_seeds(argument, "do_rank.py", SCALES, LEAST_PAIRS)
    count = count or (_SEEDS if name != "smoke" else 2)
    scale = SCALES[name]
    grid = seeds(_points(scale), count, ("init_seed", "data_seed"))
    return sweep_config(_train(scale), grid, _evaluation(scale, name), notes=_notes(count))


def _train(scale: Scale) -> TrainConfig:
    return TrainConfig(
        name="control",
        tokens=scale.steps * scale.batch * scale.length,
        model=small_model(scale, factored_head=True),  # of the control as well, so that all share a program
        optimizer=OptimizerConfig(learning_rate=scale.rate, weight_decay=scale.decay),
        data=prose(scale),
        probe=small_probe(scale, max(1, scale.steps // 10), _METRICS),
        checkpoint=CheckpointConfig(every=max(1, scale.steps // 2)),
    )


def _points(scale: Scale) -> Grid:
    control: Point = {"optimizer.weight_decay": scale.decay, "data.batch_size": scale.batch}
    observed = one_at_a_time(control, {"optimizer.weight_decay": scale.decays, "data.batch_size": scale.batches})
    observed = [point | _name_of(scale, point) for point in observed]
    return chain(observed, [observed[0] | arm for arm in _arms(scale)])


def _name_of(scale: Scale, point: Point) -> Point:
    """Return the name of a run without intervention, by the settings in which it differs from the control."""
    changed = {
        "optimizer.weight_decay": ("decay", scale.decay),
        "data.batch_size": ("batch", scale.batch),
    }
    names = [f"{word}-{point[key]:g}" for key, (word, default) in changed.items() if point[key] != default]
    return {"name": "-".join(names) or "control"}


def _arms(scale: Scale) -> Grid:
    ranks = [max(1, round(share * scale.width)) for share in _SHARES]
    points: Grid = []
    for rank in ranks:
        points.append({"name": f"factored-{rank}", "intervention.head_rank": rank})
        for subspace in ("leading", "random"):
            name, of = f"backward-{subspace}-{rank}", {"intervention.backward_subspace": subspace}
            points.append({"name": name, "intervention.backward_rank": rank} | of)
        update: Point = {"intervention.update_rank": rank}
        points.append({"name": f"update-{rank}"} | update)
        points.append({"name": f"backward-and-update-{rank}", "intervention.backward_rank": rank} | update)
    for key, values in _DOSES.items():
        points += [{"name": f"{key.replace('_', '-')}-{value}", f"intervention.{key}": value} for value in values]
    return points


def _evaluation(scale: Scale, name: str) -> EvalConfig:
    tuning = FinetuneConfig(
        targets=("code",),
        tokens=scale.steps // 10 * scale.batch * scale.length or scale.batch * scale.length,
        batch_size=scale.batch,
        learning_rates=(scale.rate / 3,),
    )
    return EvalConfig(
        tokens_per_domain=scale.tokens_per_domain,
        quantize=QuantizeConfig(bits=(4, 3), methods=("gptq",), calibration_tokens=512 if name == "smoke" else 8192),
        finetune=tuning,
    )


def _notes(count: int) -> list[str]:
    if count < LEAST_PAIRS:
        return [f"{count} pairs: no interval is computed for fewer than {LEAST_PAIRS}"]
    return [
        f"{count} pairs: at the 5 % level and with a power of 80 %, each dose can detect a change of "
        f"{detectable(count):.2f} standard deviations of a paired difference; divided by the change of the rank, that "
        "is the smallest slope that it can detect",
        "the placebo (mean_row) moves the raw rank but no prediction: an outcome that follows it would mean an error",
    ]
