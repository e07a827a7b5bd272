"""Measure what descriptors cost, as shares of a training step, and many learning coefficients against one by one.

    .venv/bin/python -m benchmarks.descriptors       (about 3 minutes on 2 cores)

The model has D 256, V 50,304 and four blocks, and a step takes 8,192 tokens. Curvature is measured on 8 windows of 256
tokens; a step of Lanczos' method costs as much as a draw of the trace. Learning coefficients are of a small network,
4 chains for each of 25 models: in one program, or one by one.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.append(str(Path(__file__).parents[1]))  # where `benchmarks` is, if this file is run by its path

from benchmarks.train import Case, Ours
from eval.llc import local_learning_coefficient
from eval.windows import Windows, mean_loss
from geometry.alignment import log_alignment_ratio, principal_alignment
from geometry.curvature import critical_sharpness, hessian_trace, top_eigenvalue
from geometry.probe import summarize
from olmo_jax.config import ModelConfig

MODEL = ModelConfig(vocab_size=50304, pad_vocab_to=1, d_model=256, n_layers=4, n_heads=8, d_ff=1024)
LENGTH, TOKENS, ROUNDS = 256, 8192, 2
MODELS, CHAINS, STEPS = 25, 4, 200


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}", flush=True)
    ours = Ours(Case(MODEL, batch=TOKENS // LENGTH, length=LENGTH, steps=2))
    ours.seconds()
    step = float(np.median([ours.seconds() for _ in range(ROUNDS)])) / 2
    print(f"a step of {TOKENS} tokens: {step:.2f} s", flush=True)
    params = jax.tree.map(lambda x_M: x_M[0], ours.state.params)
    for name, measure in _measures(params).items():
        seconds = _seconds(measure)
        print(f"{name:32} {seconds:8.3f} s  {100 * seconds / step:7.1f} % of a step", flush=True)
    side_by_side, one_by_one = _learning_coefficients()
    print(
        f"{MODELS} x {CHAINS} chains: {side_by_side:.2f} s in one program, {one_by_one:.2f} s one by one, "
        f"{one_by_one / side_by_side:.1f} times as long",
        flush=True,
    )


def _measures(params: Any) -> dict[str, Callable[[], Any]]:
    rng = np.random.default_rng(0)
    tokens_NL = jnp.asarray(rng.integers(0, MODEL.vocab_size, (8, LENGTH + 1)), jnp.int32)
    windows = Windows(tokens_NL[:, :-1], tokens_NL[:, 1:], jnp.ones((8, LENGTH)))
    loss = functools.partial(mean_loss, MODEL, windows=windows)
    w_VD, states_ND = params["unembedding"], jnp.asarray(rng.normal(size=(1024, MODEL.d_model)), jnp.float32)
    gradient = jax.jit(jax.grad(loss))(params)
    top = top_eigenvalue(loss, params, jax.random.key(0), 2)
    return {
        "alphaReQ of 1,024 states": lambda: summarize(states_ND, ("alpha_req",)),
        "log-alignment ratio": lambda: log_alignment_ratio(w_VD, states_ND),
        "principal alignment, k = 8": lambda: principal_alignment(states_ND, w_VD, 8),
        "critical sharpness": lambda: critical_sharpness(loss, params, gradient, 2 / jnp.maximum(top, 1e-6)),
        "Hessian trace, per draw": lambda: hessian_trace(loss, params, jax.random.key(0), 1),
    }


def _learning_coefficients() -> tuple[float, float]:
    rng = np.random.default_rng(0)
    x_ND = jnp.asarray(rng.normal(size=(64, 4)), jnp.float32)
    shapes = {"in": (MODELS, 4, 8), "out": (MODELS, 8, 1)}
    params_M = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}

    def loss(w: Any, key: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(jnp.tanh(x_ND @ w["in"]) @ w["out"]))

    def estimate(params: Any) -> jax.Array:
        return local_learning_coefficient(loss, params, jax.random.key(0), 64, CHAINS, STEPS)[0]

    together, alone = jax.jit(jax.vmap(estimate)), jax.jit(estimate)
    each = [jax.tree.map(lambda x_M, m=m: x_M[m], params_M) for m in range(MODELS)]
    return _seconds(lambda: together(params_M)), _seconds(lambda: [alone(params) for params in each])


def _seconds(measure: Callable[[], Any]) -> float:
    jax.block_until_ready(measure())
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        jax.block_until_ready(measure())
        times.append(time.perf_counter() - start)
    return float(np.median(times))


if __name__ == "__main__":
    main()
