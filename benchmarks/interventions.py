"""Measure what each intervention costs: steps of a model with and without it, in turn, in one run.

    .venv/bin/python -m benchmarks.interventions [--tokens=8192] [ARM ...]       (about 5 minutes on 2 cores)

The model is that of do_rank:gpu (D 256, V 8192, four blocks), one member, on random tokens. The cost of decomposing W
doesn't depend on the batch, so its share falls as the batch grows. Target: polar_decay costs at most 5 % of a step.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np

sys.path.append(str(Path(__file__).parents[1]))  # where `benchmarks` is, if this file is run by its path

from benchmarks.train import Case, Ours
from olmo_jax.config import InterventionConfig, ModelConfig

ARMS = {
    "head_rank": InterventionConfig(head_rank=128),
    "backward_rank": InterventionConfig(backward_rank=128),
    "update_rank": InterventionConfig(update_rank=128),
    "rank_penalty": InterventionConfig(rank_penalty=0.01),
    "polar_decay": InterventionConfig(polar_decay=0.1),
    "head_decay": InterventionConfig(head_decay=1.0),
    "center_head": InterventionConfig(center_head=True),
    "mean_row": InterventionConfig(mean_row=1.0),
}
LENGTH, ROUNDS, STEPS = 256, 7, 2
MODEL = ModelConfig(vocab_size=8192, pad_vocab_to=1, d_model=256, n_layers=4, n_heads=8, d_ff=1024)


def case(tokens: int, arm: InterventionConfig) -> Case:
    model = dataclasses.replace(MODEL, context_length=LENGTH, factored_head=bool(arm.head_rank))
    return Case(model, batch=max(1, tokens // LENGTH), length=LENGTH, steps=STEPS, intervention=arm)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192, help="tokens per step (default: 8192)")
    parser.add_argument(
        "arms", nargs="*", choices=[[], *ARMS], metavar="ARM", help=f"one of {', '.join(ARMS)} (default: all)"
    )
    arguments = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {arguments.tokens} tokens per step", flush=True)
    control = Ours(case(arguments.tokens, InterventionConfig()))
    control.seconds()
    for name in arguments.arms or ARMS:
        treated = Ours(case(arguments.tokens, ARMS[name]))
        treated.seconds()
        without, with_arm = np.array([(control.seconds(), treated.seconds()) for _ in range(ROUNDS)]).T
        more = np.sort(100 * (with_arm / without - 1))
        print(
            f"{name:14} {np.median(more):+6.1f} % of a step of {1e3 * np.median(without) / STEPS:.0f} ms "
            f"({more[0]:+.1f} to {more[-1]:+.1f} in {ROUNDS} rounds)",
            flush=True,
        )


if __name__ == "__main__":
    main()
