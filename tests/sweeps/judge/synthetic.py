"""Synthetic suites of runs in which what a metric means is known."""

import itertools

import numpy as np
import pandas as pd

METRIC = "final_states/planted"
KINDS = ("progress", "noise", "predictor", "cause")
_RATES, _DECAYS, _BATCHES = (1e-3, 3e-3, 1e-2), (0.01, 0.1, 1.0), (8, 16, 32, 64)
_ARMS = {"head_rank": (48, 32, 16), "polar_decay": (0.3, 1.0, 3.0)}


def suite(kind, rng, seeds=3, configurations=36):
    """Runs of a factorial design. Progress is set by settings and seeds; a hidden property of a run is independent.

    The metric is progress along a curve ("progress"), the seed's ("noise"), or the hidden property, on which the
    out-of-domain loss depends too ("predictor", "cause").
    """
    settings = list(itertools.product(_RATES, _DECAYS, _BATCHES))[:configurations]
    rows = []
    for i, (rate, decay, batch) in enumerate(settings):
        at = np.array([np.log10(rate) + 2.5, np.log10(decay) + 1, np.log2(batch) - 4.5])
        progress = at @ [0.2, -0.1, 0.05] + 0.03 * at[0] * at[1]
        hidden = rng.normal()
        for seed in range(seeds):
            rows.append(
                _row(kind, rng, progress + rng.normal(0, 0.02), hidden + rng.normal(0, 0.3))
                | {"configuration": f"c{i}", "config.init_seed": seed, "config.optimizer.learning_rate": rate,
                   "config.optimizer.weight_decay": decay, "config.data.batch_size": batch}
            )  # fmt: skip
    return finished(rows)


def interventions(kind, rng, seeds=6):
    """Controls of several settings, and arms that move the hidden property by known amounts at the default setting.

    The outcome follows if the property is its cause, and if it only predicts it, does not.
    """
    rows = []
    # What an observational sweep shows: settings that move the hidden property and the outcome together.
    for i, hidden in enumerate((0.0, -1.2, -0.6, 0.6, 1.2, 1.8)):
        for seed in range(seeds):
            rows.append(_arm_row(kind, rng, hidden, hidden, seed, f"s{i}", batch=8 + i))
    for arm, doses in _ARMS.items():
        for k, dose in enumerate(doses):
            moved = (-0.5 if arm == "head_rank" else 0.4) * (k + 1)
            felt = moved if kind == "cause" else 0.0
            rows += [_arm_row(kind, rng, moved, felt, seed, f"{arm}{k}", {arm: dose}) for seed in range(seeds)]
    return finished(rows)


def _arm_row(kind, rng, hidden, felt, seed, configuration, arm=None, batch=8):
    row = _row(kind, rng, rng.normal(0, 0.02), hidden + rng.normal(0, 0.1))
    row["lm_loss/out_of_domain"] = 4.0 + 0.1 * felt + rng.normal(0, 0.01)
    given = {f"config.intervention.{name}": (arm or {}).get(name, 0) for name in _ARMS}
    return row | given | {"configuration": configuration, "config.init_seed": seed, "config.data.batch_size": batch}


def _row(kind, rng, progress, hidden):
    loss = 3.5 + progress
    metric = {
        "progress": 10 * np.exp(-2 * progress) + rng.normal(0, 0.05),
        "noise": rng.normal(),
        "predictor": hidden,
        "cause": hidden,
    }[kind]
    effect = 0.1 * hidden if kind in ("predictor", "cause") else 0.0
    return {
        METRIC: metric,
        "train/loss": loss + rng.normal(0, 0.02),
        "lm_loss/in_domain": loss + rng.normal(0, 0.003),
        "lm_loss/out_of_domain": 4.0 + 1.2 * progress + 0.8 * progress**2 + effect + rng.normal(0, 0.02),
    }


def finished(rows):
    """Return the table of finished runs with these rows."""
    frame = pd.DataFrame(rows)
    return frame.assign(
        run_id=[f"r{i}" for i in range(len(frame))], step=100, final=True, tokens=10_000, training_flops=1e9,
        parameters_non_embedding=1000, diverged_at=pd.array([None] * len(frame), "Int64"),
    )  # fmt: skip


def matrices(rng, count=8, shape=(48, 12), mean_row=0.0, rank=4):
    """Matrices with a decaying spectrum that lies along few coordinates, and a mean row of a random length."""
    result = []
    for _ in range(count):
        low = rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, shape[1]))
        w_VD = low + 0.3 * rng.normal(size=shape)
        result.append((w_VD + mean_row * rng.normal() * np.ones(shape[1])).astype(np.float32))
    return result
