"""Measure the memory that each device needs to train a published 1B model, whole or fully sharded.

    python -m benchmarks.sharding [olmo2] [--size=1b] [--json=FILE]

It compiles the training step for eight virtual CPU devices, without running it, and prints what the compiled program
needs on each: its arguments (parameters, moments, text) and its temporaries, for one sequence per device.
"""

import argparse
import dataclasses
import json
import os
import sys
import time

DEVICES = 8
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402

from olmo_jax import cohort as cohorts  # noqa: E402
from olmo_jax.cohort import Run  # noqa: E402
from olmo_jax.config import MeshConfig, ModelConfig, TrainConfig  # noqa: E402
from olmo_jax.config.presets import OLMO, OLMO2, PYTHIA  # noqa: E402
from olmo_jax.execution import sharding  # noqa: E402
from olmo_jax.execution.memory import choose_execution_plan  # noqa: E402
from olmo_jax.execution.program import compile_steps  # noqa: E402
from olmo_jax.model import parameter_count  # noqa: E402

MESHES = {
    "whole on each": MeshConfig(1, DEVICES, 1),
    "cut over model": MeshConfig(1, 1, DEVICES),
    "fully sharded": MeshConfig(1, DEVICES, 1, fsdp=True),
    "fully sharded, model 2": MeshConfig(1, DEVICES // 2, 2, fsdp=True),
}


def measure(model: ModelConfig, mesh: MeshConfig, length: int) -> dict[str, float]:
    """Return the GB of arguments and of temporaries on one device, and the seconds of compilation."""
    base = TrainConfig(tokens=10**9, model=model, mesh=mesh, mapping="vmap")
    data = dataclasses.replace(base.data, batch_size=DEVICES, sequence_length=length)
    run = Run("1b", dataclasses.replace(base, data=data))
    shape = cohorts.shape_of(run.config, "text")
    start = time.monotonic()
    devices = sharding.make_mesh(mesh, 1)
    plan = choose_execution_plan(shape, 1, devices)._replace(steps_per_call=1)
    steps = compile_steps(shape, [run], devices, plan).steps
    memory = steps.memory_analysis()
    assert memory is not None
    return {
        "arguments_gb": memory.argument_size_in_bytes / 1e9,
        "temporaries_gb": memory.temp_size_in_bytes / 1e9,
        "compile_s": time.monotonic() - start,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", nargs="?", default="olmo", choices=("olmo", "olmo2", "pythia"))
    parser.add_argument("--size", default="1b")
    parser.add_argument("--length", type=int, default=512, help="tokens per sequence (default: 512)")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    model = {"olmo": OLMO, "olmo2": OLMO2, "pythia": PYTHIA}[arguments.family][arguments.size]
    total, _ = parameter_count(model)
    state = 12 * total / 1e9  # parameters and two moments, float32
    print(f"{arguments.family} {arguments.size}: {total:,} parameters, {state:.2f} GB with moments; {jax.__version__=}")
    rows = []
    for layout, mesh in MESHES.items():
        measured = measure(model, mesh, arguments.length) | {"state_gb": state}
        rows.append({"case": f"{arguments.family}-{arguments.size}", "layout": layout} | measured)
        print(
            f"{layout:<24} {measured['arguments_gb']:7.2f} GB of arguments ({measured['arguments_gb'] / state:.3f} of "
            f"the state), {measured['temporaries_gb']:6.2f} GB of temporaries, "
            f"compiled in {measured['compile_s']:.0f} s",
            flush=True,
        )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file, indent=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
