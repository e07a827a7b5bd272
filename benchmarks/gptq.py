"""Compare the speed of GPTQ with Qwix's, at 4 bits with a scale for each column, in one run.

    python -m benchmarks.gptq       (in the environment of `make oracles`; 2 minutes on 2 cores)
    python -m benchmarks.gptq one_matrix stack ...                       (only some of the questions)

Questions: one_matrix, large, stack, cohort. Qwix's GPTQ isn't compiled as a whole: jax compiles each of its steps
on first use, so its first call of a shape in a process takes much longer than later ones. Both times are printed.
"""

import argparse
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eval.evaluators.calibrate import Method, gptq_params
from eval.evaluators.quantization import SCOPES
from eval.gptq import gptq, gptq_with_damping
from olmo_jax import model
from olmo_jax.config import ModelConfig

TARGET = 100  # how many times as fast as Qwix to be, on one matrix of 512 x 512


def problem(inputs: int, outputs: int, members: int | None = None) -> tuple[jax.Array, jax.Array]:
    """Return weights and the Hessian of correlated inputs; with `members`, a stack of them."""
    rng = np.random.default_rng(0)
    stack = () if members is None else (members,)
    mixing = np.eye(inputs, dtype=np.float32) + rng.standard_normal((*stack, inputs, inputs), np.float32) / inputs**0.5
    x = rng.standard_normal((*stack, 2 * inputs, inputs), np.float32) @ mixing
    w = rng.standard_normal((*stack, inputs, outputs), np.float32)
    return jnp.asarray(w), jnp.asarray(2 * np.swapaxes(x, -1, -2) @ x)


def timed(call: Callable[[], Any], rounds: int) -> tuple[float, np.ndarray]:
    """Return the seconds of the first call, compilation included, and of later ones, [rounds]."""
    seconds = []
    for _ in range(1 + rounds):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return seconds[0], np.array(seconds[1:])


def told(first: float, seconds: np.ndarray) -> str:
    return f"{np.median(seconds):.4g} s ({seconds.min():.4g} to {seconds.max():.4g}), {first:.3g} s the first time"


def qwix_gptq(w_IO: jax.Array, hessian_II: jax.Array) -> jax.Array:
    from qwix._src.core import qarray
    from qwix.contrib import gptq_core

    how = qarray.HowToQuantize(qtype=jnp.int4, channelwise_axes=[0])
    return qarray.dequantize(gptq_core.quantize_weight(w_IO.T, hessian_II, how)[0]).T


def ask_one_matrix() -> None:
    w, h = problem(512, 512)
    first, seconds = timed(lambda: gptq(w, h, 4, grid="gptq"), 15)
    qwix_first, qwix_seconds = timed(lambda: qwix_gptq(w, h), 3)
    same = np.isclose(gptq(w, h, 4, grid="gptq"), qwix_gptq(w, h), rtol=1e-4, atol=1e-5).mean()
    print(f"one matrix 512 x 512: ours {told(first, seconds)}; qwix {told(qwix_first, qwix_seconds)}", flush=True)
    print(
        f"one matrix 512 x 512: qwix / ours = {np.median(qwix_seconds) / np.median(seconds):.0f} once both have been "
        f"called, {qwix_first / np.median(seconds):.0f} for qwix's first call, {qwix_first / first:.0f} for both first "
        f"calls; target {TARGET}; {100 * same:.2f} % of the weights are the same",
        flush=True,
    )


def ask_large() -> None:
    w, h = problem(2048, 2048)
    for name, choices in {"a column": {}, "128 inputs": {"group_size": 128}}.items():
        run = timed(lambda choices=choices: gptq(w, h, 4, **choices), 5)  # type: ignore[misc]
        print(f"one matrix 2048 x 2048, a scale for {name}: ours {told(*run)}", flush=True)


def ask_stack() -> None:
    """Time the matrices of a cohort of 48 of the demo's models, one kind at a time."""
    for inputs, outputs in ((64, 64), (64, 256), (256, 64)):
        w, h = problem(inputs, outputs, members=48)
        call = jax.jit(jax.vmap(lambda w, h: gptq_with_damping(w, h, 4)))
        run = timed(lambda call=call, w=w, h=h: call(w, h), 15)  # type: ignore[misc]
        print(f"48 matrices {inputs} x {outputs} under vmap: ours {told(*run)}", flush=True)


def ask_cohort() -> None:
    """Time a whole cohort of the demo: 6 models of 4 blocks, calibrated on the same 16,384 tokens, block by block."""
    config = ModelConfig(vocab_size=2048, d_model=64, n_layers=4, n_heads=4, d_ff=256)
    params_M = jax.vmap(lambda seed: model.init(config, jax.random.key(seed)))(np.arange(6, dtype=np.uint32))
    tokens_NL = np.random.default_rng(0).integers(0, config.vocab_size, (128, 128)).astype(np.int32)
    run = timed(lambda: gptq_params(config, params_M, tokens_NL, SCOPES["blocks"], Method(4)), 3)
    print(f"6 models of the demo, 28 matrices each: ours {told(*run)}", flush=True)


QUESTIONS = {"one_matrix": ask_one_matrix, "large": ask_large, "stack": ask_stack, "cohort": ask_cohort}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=", ".join(QUESTIONS))
    chosen = parser.parse_args().questions or list(QUESTIONS)
    if unknown := set(chosen) - set(QUESTIONS):
        parser.error(f"unknown question {', '.join(sorted(unknown))}; choose from {', '.join(QUESTIONS)}")
    device = jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}), jax {jax.__version__}, numpy {np.__version__}, "
          f"Python {platform.python_version()}", flush=True)  # fmt: skip
    for name in chosen:
        QUESTIONS[name]()


if __name__ == "__main__":
    main()
