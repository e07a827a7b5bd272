"""Measure the speed of training against torch, and against the rate of this machine's matmuls.

    make oracles-setup && .venv-oracles/bin/python -m benchmarks.train [--case=NAME] [--json=FILE] [--repeats=N]

One model of each shape is compared with transformers' OlmoForCausalLM in torch, the better of eager and compiled, in a
separate process. Both take their steps in turn, and so do large matmuls, whose rate is the peak. Numbers are medians
over the repeats. A cohort of eight is compared with its members alone. On a GPU, cohorts of a 4M and a 75M model are
measured instead. Without torch and transformers (the extra `oracles`) the ratio is null and the rest is measured.
"""

import argparse
import dataclasses
import functools
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from olmo_jax import cohort as cohorts
from olmo_jax import loss
from olmo_jax.cohort import Run
from olmo_jax.config import (
    ComputeConfig,
    ConfigError,
    DataConfig,
    InterventionConfig,
    MeshConfig,
    ModelConfig,
    TrainConfig,
)
from olmo_jax.config.presets import STAND_INS
from olmo_jax.execution import flops, memory, sharding
from olmo_jax.execution.program import compile_steps, initial_state
from olmo_jax.logs.timing import matmul_seconds

# Threads of torch's pool keep spinning on their cores for a while after their work, which would slow what comes next.
_REST = 0.4


@dataclasses.dataclass(frozen=True)
class Case:
    """One shape of training; `steps` are taken in turn with the peer's."""

    model: ModelConfig
    batch: int = 8
    length: int = 128
    members: int = 1
    steps: int = 4
    intervention: InterventionConfig = InterventionConfig()

    @property
    def tokens(self) -> int:
        return self.members * self.batch * self.length


def olmo(vocabulary: int, width: int, layers: int = 4, heads: int = 4) -> ModelConfig:
    return ModelConfig(vocab_size=vocabulary, d_model=width, n_layers=layers, n_heads=heads, d_ff=4 * width)


CPU_CASES = {
    "V50304_D256_L4": Case(olmo(50304, 256), steps=4),
    "V1024_D64_L4": Case(olmo(1024, 64), steps=32),
    "V4096_D128_L4_T256": Case(olmo(4096, 128), length=256, steps=8),
}
MEMBERS_CASE = "V1024_D64_L4_M8"
LOSS_CASE = "loss_V50304"


def gpu_cases() -> dict[str, Case]:
    """Return cases in bfloat16: cohorts of a 4M model, a 75M one alone and four together, and a large batch."""
    small, medium = (dataclasses.replace(STAND_INS[size], compute_dtype="bfloat16") for size in ("4m", "75m"))
    cases = {f"4m_M{m}": Case(small, 32, 1024, m, max(1, 16 // m)) for m in (1, 8, 32, 128)}
    cases |= {f"75m_M{m}": Case(medium, 32, 1024, m, 4 // m) for m in (1, 4)}
    return cases | {"75m_B512": Case(medium, 512, 1024, 1, 1)}


class Ours:
    """A cohort's compiled steps on random tokens."""

    def __init__(self, case: Case, steps_per_call: int = 0):
        data = DataConfig(sequence_length=case.length, batch_size=case.batch, bpe_vocab_size=300)
        config = TrainConfig(
            tokens=10**11, model=case.model, data=data, mesh=MeshConfig(member=1), intervention=case.intervention
        )
        config = dataclasses.replace(config, compute=ComputeConfig(steps_per_call=steps_per_call or case.steps))
        runs = [Run(f"run{m}", dataclasses.replace(config, init_seed=m)) for m in range(case.members)]
        shape, mesh = cohorts.shape_of(config, "random"), sharding.make_mesh(config.mesh, case.members)
        plan = memory.choose_execution_plan(shape, case.members, mesh)
        plan = memory.fit(shape, runs, mesh, plan, memory.device_memory())
        self.microbatches = plan.microbatches
        start = time.perf_counter()
        self._state = initial_state(shape, runs, mesh)
        self._program = compile_steps(shape, runs, mesh, plan)
        self.compile_seconds = time.perf_counter() - start
        size = (plan.steps_per_call, case.members, case.batch, case.length + 1)
        tokens = np.random.default_rng(0).integers(0, case.model.vocab_size, size).astype(np.int32)
        self._fed = sharding.put(mesh, PartitionSpec(None, *sharding.BATCH), tokens)
        self._calls = case.steps // plan.steps_per_call

    @property
    def state(self) -> Any:
        """Return the stack as the last steps left it, or as it was initialised."""
        return self._state

    @property
    def program(self) -> Any:
        """Return the compiled steps, with the members' hyperparameters as `hyper`."""
        return self._program

    @property
    def fed(self) -> jax.Array:
        """Return the random tokens that each call takes, `[K, M, B, L + 1]`."""
        return self._fed

    @property
    def memory_bytes(self) -> int:
        """Return the bytes that the compiled steps need on a device: state, text, results and temporaries."""
        memory = self._program.steps.memory_analysis()
        assert memory is not None
        needed = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        return needed - memory.alias_size_in_bytes

    def seconds(self) -> float:
        """Take the case's steps, and return the seconds that they took."""
        start = time.perf_counter()
        count = np.int32(self._fed.shape[0])
        for _ in range(self._calls):
            self._state, metrics = self._program.steps(self._state, self._program.hyper, None, self._fed, count)
        jax.block_until_ready((self._state, metrics))
        return time.perf_counter() - start


class Peer:
    """torch in a separate process."""

    def __init__(self, case: Case, compiled: bool):
        m = case.model
        asked = {"vocabulary": m.vocab_size, "width": m.d_model, "layers": m.n_layers, "heads": m.n_heads}
        asked |= {"batch": case.batch, "length": case.length, "threads": os.cpu_count() or 1, "compiled": compiled}
        command = [sys.executable, str(Path(__file__).with_name("train_peer.py")), json.dumps(asked)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._steps = case.steps

    def seconds(self) -> float:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(f"{self._steps}\n")
        stdin.flush()
        return float(stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def in_turn(repeats: int, **takes: Callable[[], float]) -> dict[str, float]:
    """Return the median of each over the repeats; the first round compiles and warms up, and is dropped."""

    def rested(take: Callable[[], float]) -> float:
        time.sleep(_REST)
        return take()

    rounds = [{name: rested(take) for name, take in takes.items()} for _ in range(repeats + 1)][1:]
    return {name: statistics.median(row[name] for row in rounds) for name in takes}


def measure(name: str, case: Case, repeats: int, with_peer: bool) -> dict[str, Any]:
    """Return our tokens per second, the peer's, and our share of the matmul peak."""
    peers = {mode: Peer(case, mode == "compiled") for mode in ("eager", "compiled")} if with_peer else {}
    ours = Ours(case)
    dtype = case.model.compute_dtype
    takes = {mode: peer.seconds for mode, peer in peers.items()}
    medians = in_turn(repeats, ours=ours.seconds, matmul=functools.partial(matmul_seconds, dtype), **takes)
    for peer in peers.values():
        peer.close()
    rate = case.steps * case.tokens / medians["ours"]
    work = flops.train_step(case.model, case.batch, case.length) * case.members * case.steps
    best = min(peers, key=lambda mode: medians[mode], default=None)
    theirs = case.steps * case.tokens / medians[best] if best else None
    return {
        "case": name,
        "tokens_per_s": rate,
        "peer_tokens_per_s": theirs,
        "ratio": rate / theirs if theirs else None,
        "fraction_of_peak": work / medians["ours"] * medians["matmul"],  # matmul: seconds per FLOP
        "step_ms": 1e3 * medians["ours"] / case.steps,
        "peer": best,
        "peak_flops": 1 / medians["matmul"],
        "compile_s": ours.compile_seconds,
        "microbatches": ours.microbatches,
    }


def measure_members(repeats: int) -> dict[str, Any]:
    """Compare a cohort of eight with one member, one step or several per call, with and without compilation."""
    one = dataclasses.replace(CPU_CASES["V1024_D64_L4"], steps=16)
    together, single, scanned = Ours(dataclasses.replace(one, members=8)), Ours(one, 1), Ours(one)
    medians = in_turn(repeats, together=together.seconds, single=single.seconds, scanned=scanned.seconds)
    steps = 500

    def rate(name: str, members: int, compile_seconds: float = 0.0) -> float:
        runs = 8 // members
        return 8 * one.tokens * steps / (runs * medians[name] / one.steps * steps + compile_seconds)

    return {
        "case": MEMBERS_CASE,
        "tokens_per_s": rate("together", 8),
        "peer_tokens_per_s": rate("single", 1),
        "ratio": rate("together", 8) / rate("single", 1),
        "fraction_of_peak": None,
        "ratio_to_scanned": rate("together", 8) / rate("scanned", 1),
        f"ratio_with_compiling_{steps}_steps": rate("together", 8, together.compile_seconds)
        / rate("single", 1, single.compile_seconds),
        f"ratio_to_scanned_with_compiling_{steps}_steps": rate("together", 8, together.compile_seconds)
        / rate("scanned", 1, scanned.compile_seconds),
        "compile_s": together.compile_seconds,
        "peer": "ours alone, step by step",
    }


def measure_loss(repeats: int) -> dict[str, Any]:
    """Compare loss and gradients at 1,024 tokens, D 256, V 50304, with all logits held: seconds and temporaries."""
    x_BLD = jnp.asarray(np.random.default_rng(0).normal(size=(8, 128, 256)), jnp.float32)
    w_VD = jnp.asarray(0.02 * np.random.default_rng(1).normal(size=(50304, 256)), jnp.float32)
    targets_BL = jnp.asarray(np.random.default_rng(2).integers(0, 50304, (8, 128)))

    def naive(x_BLD: jax.Array, w_VD: jax.Array) -> jax.Array:
        logits_BLV = jnp.einsum("bld,vd->blv", x_BLD, w_VD)
        hit_BL = jnp.take_along_axis(logits_BLV, targets_BL[..., None], axis=-1)[..., 0]
        return jnp.mean(jax.nn.logsumexp(logits_BLV, axis=-1) - hit_BL)

    def ours(x_BLD: jax.Array, w_VD: jax.Array) -> jax.Array:
        return loss.cross_entropy(x_BLD, w_VD, targets_BL).objective

    compiled = {
        name: jax.jit(jax.value_and_grad(f, argnums=(0, 1))).lower(x_BLD, w_VD).compile()
        for name, f in (("ours", ours), ("naive", naive))
    }

    def seconds(name: str) -> float:
        start = time.perf_counter()
        jax.block_until_ready(compiled[name](x_BLD, w_VD))
        return time.perf_counter() - start

    medians = in_turn(repeats, ours=lambda: seconds("ours"), naive=lambda: seconds("naive"))
    held = {name: _temporaries(c) / 2**20 for name, c in compiled.items()}
    return {
        "case": LOSS_CASE,
        "tokens_per_s": 1024 / medians["ours"],
        "peer_tokens_per_s": 1024 / medians["naive"],
        "ratio": medians["naive"] / medians["ours"],
        "fraction_of_peak": None,
        "temporaries_mib": held["ours"],
        "naive_temporaries_mib": held["naive"],
        "temporaries_ratio": held["ours"] / held["naive"],
        "peer": "all logits held",
    }


def _temporaries(compiled: jax.stages.Compiled) -> int:
    memory = compiled.memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes


def line(row: dict[str, Any]) -> str:
    """Return a row of the table as text."""

    def shown(key: str, form: str) -> str:
        return format(row[key], form) if row.get(key) is not None else "-"

    more = [
        f"{k} {v:.3g}" for k, v in row.items() if k.startswith(("ratio_", "temporaries", "naive_", "compile", "micro"))
    ]
    cells = (shown("tokens_per_s", ",.0f"), shown("peer_tokens_per_s", ",.0f"), shown("ratio", ".2f"))
    return (
        f"{row['case']:<20}"
        + "".join(f"{cell:>14}" for cell in cells)
        + (f"{shown('fraction_of_peak', '.1%'):>10}  {row.get('peer') or 'no peer'}; {', '.join(more)}")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = jax.default_backend() == "gpu"
    cases = gpu_cases() if on_gpu else CPU_CASES
    names = [*cases, *([] if on_gpu else [MEMBERS_CASE]), LOSS_CASE]
    parser.add_argument("--case", choices=names, help="only this one")
    parser.add_argument("--json", metavar="FILE", help="write the rows to this file")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    with_peer = not on_gpu and all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, jax {jax.__version__}, peer: {with_peer}")
    print(f"{'case':<20}{'tokens/s':>14}{'peer':>14}{'ratio':>14}{'of peak':>10}")
    rows = []
    for name in [arguments.case] if arguments.case else names:
        if name == MEMBERS_CASE:
            rows.append(measure_members(arguments.repeats))
        elif name == LOSS_CASE:
            rows.append(measure_loss(arguments.repeats))
        else:
            try:
                rows.append(measure(name, cases[name], arguments.repeats, with_peer))
            except ConfigError as error:  # a device with less memory than the case needs
                print(f"{name:<20}{error}", flush=True)
                continue
        print(line(rows[-1]), flush=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
