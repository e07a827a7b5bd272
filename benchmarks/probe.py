"""Measure what the in-loop probe costs: steps of the demo's cohorts with and without it, in turn, in one run.

    .venv/bin/python -m benchmarks.probe        (about 3 minutes on 2 cores; batches are random tokens, no data needed)

First it compares steps with and without the probe of the unembedding alone, every 10 steps (raw and gauge-fixed:
effective rank, stable rank, cosine, I(W)); then it times each of the demo's probe programs by itself, as a share of the
steps between two of its calls.
"""

import argparse
import dataclasses
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from olmo_jax.cohort import Cohort, Run, shape_of
from olmo_jax.execution import sharding
from olmo_jax.execution.memory import choose_execution_plan
from olmo_jax.execution.program import compile_steps, initial_state
from olmo_jax.probes.geometry import Probe, choose_documents, make_probes
from sweeps.configs import demo
from sweeps.planning.plan import point_config, read_sweep

ROUNDS, STEPS = 5, 10


def cohorts_of_the_demo() -> list[Cohort]:
    """Return one cohort per batch size, without data."""
    sweep = read_sweep(demo.get_config())
    groups: dict[Any, list[Run]] = {}
    for i in range(len(sweep.grid)):
        config = point_config(sweep, i)
        groups.setdefault(shape_of(config, "none"), []).append(Run(f"run{i}", config))
    return [Cohort(shape, tuple(runs)) for shape, runs in groups.items()]


def ask(cohort: Cohort) -> None:
    shape, runs = cohort.shape, cohort.runs
    mesh = sharding.make_mesh(dataclasses.replace(shape.config.mesh, member=1), len(runs))
    state = initial_state(shape, runs, mesh)
    plan = choose_execution_plan(shape, len(runs), mesh)._replace(steps_per_call=1)
    program = compile_steps(shape, runs, mesh, plan)
    rng = np.random.default_rng(0)
    vocabulary = shape.model.vocab_size
    size = (1, len(runs), shape.batch_size, shape.sequence_length + 1)
    tokens = sharding.put(mesh, PartitionSpec(None, *sharding.BATCH), rng.integers(0, vocabulary, size, dtype=np.int32))
    text = [rng.integers(0, vocabulary, 64) for _ in range(shape.config.probe.sets * shape.config.probe.documents)]
    documents = choose_documents(shape.config.probe, text, 0)
    probes = make_probes(shape.config.probe, shape.model, vocabulary, documents, shape.config.mapping, mesh)
    often = shape.config.probe.interval(shape.config.probe.unembedding)

    def steps(with_probe: Probe | None) -> float:
        nonlocal state
        pending = []
        start = time.perf_counter()
        for step in range(1, STEPS + 1):
            state, metrics = program.steps(state, program.hyper, None, tokens, np.int32(1))
            pending.append(metrics.loss)
            if with_probe and step % often == 0:
                pending += with_probe(state.params).values()
        jax.block_until_ready((state, pending))
        return (time.perf_counter() - start) / STEPS

    def alone(probe: Probe) -> float:
        start = time.perf_counter()
        jax.block_until_ready(probe(state.params))
        return time.perf_counter() - start

    # The first round compiles and is dropped.
    rounds = [(steps(None), steps(probes[often]), *map(alone, probes.values())) for _ in range(ROUNDS + 1)][1:]
    off, on, *each = np.array(rounds).T
    more = 100 * (on / off - 1)
    print(
        f"batch {shape.batch_size}, {len(runs)} members: a step {1e3 * np.median(off):.0f} ms; with the unembedding "
        f"every {often} steps {np.median(more):+.1f} % ({', '.join(f'{x:+.1f}' for x in more)})"
    )
    for interval, seconds in zip(probes, each, strict=True):
        share = 100 * np.median(seconds) / (interval * np.median(off))
        print(f"  the program of every {interval} steps: {1e3 * np.median(seconds):.1f} ms, {share:.2f} % of its steps")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    for each in cohorts_of_the_demo():
        ask(each)


if __name__ == "__main__":
    main()
