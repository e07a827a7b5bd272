"""Quantise whole models by GPTQ, block by block, each calibrated on the output of the quantised blocks before it.

As in the reference code, the Hessians of a block are computed while the block is still at full precision; its
quantised weights are used to compute the inputs of the next block.
"""

import functools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from eval.gptq import gptq_with_damping
from eval.quantize import largest_group, quantize_params, round_to_nearest
from geometry.svd import matmul
from olmo_jax import model
from olmo_jax.config.model import Layer, ModelConfig
from olmo_jax.console import progress
from olmo_jax.execution.members import over_members


class Errors(NamedTuple):
    """Errors of a quantised matrix Q with respect to W, scalars.

    output: sqrt(tr((W - Q)^T H (W - Q)) / tr(W^T H W)), the relative error of its outputs on the calibration tokens.
    output_rounded: the same for round-to-nearest. damping: the damping that the Hessian needed.
    """

    output: Array
    output_rounded: Array
    damping: Array


class Method(NamedTuple):
    """Arguments of `eval.gptq.gptq`; `adapt_groups` as in `eval.quantize.quantize_params`."""

    bits: int | Array
    granularity: str = "channel"
    group_size: int | None = None
    symmetric: bool = True
    grid: str = "max"
    act_order: bool = False
    damping: float = 0.01
    adapt_groups: bool = False

    @property
    def rounding(self) -> tuple[int | Array, str, int | None, bool, str]:
        """Return the arguments of `round_to_nearest`."""
        return self[:5]

    @property
    def arguments(self) -> tuple[int | Array, str, int | None, bool, str, bool, float]:
        """Return the arguments of `eval.gptq.gptq`."""
        return self[:7]

    def of_inputs(self, inputs: int) -> "Method":
        """Return the method for matrices with this number of inputs."""
        if self.adapt_groups and self.group_size:
            return self._replace(group_size=largest_group(inputs, self.group_size))
        return self


def gptq_params(
    config: ModelConfig,
    params_M: Any,
    tokens_NL: ArrayLike,
    pattern: str,
    method: Method,
    batch_size: int = 32,
    is_text_NL: ArrayLike | None = None,
) -> tuple[Any, dict[str, Errors]]:
    """Quantise the matrices whose path matches by GPTQ, each member of a stack calibrated on its own states.

    Embedding and positions that match are rounded to nearest, which is equivalent to GPTQ for one-hot inputs. They and
    the unembedding have one scale per token ("channel"), or per group of dimensions of a token's vector.

    Args:
      tokens_NL: calibration text, the same for all members.
      pattern: regular expression that the whole of a parameter's path has to match.
      batch_size: most rows of text per batch; the largest divisor of N up to it is used.
      is_text_NL: False for the padding after a row's text, which counts in no Hessian; None if there is none.

    Returns:
      The quantised stack, and the errors `[M]` of each matrix by path.
    """
    tokens_nBL = _batches(jnp.asarray(tokens_NL), batch_size)
    is_text_nBL = jnp.ones(tokens_nBL.shape, bool)
    if is_text_NL is not None:
        is_text_nBL = jnp.asarray(is_text_NL).reshape(tokens_nBL.shape)
    bits, how = method.bits, method._replace(bits=0)  # separate, so that all bit widths share one compiled program
    params_M, errors = dict(params_M), dict[str, Errors]()
    tied = "unembedding" not in params_M
    for name in ("positions",) if tied else ("embedding", "positions"):
        if name in params_M and re.fullmatch(pattern, name):
            round_by_token = functools.partial(_round_by_token, method, name)
            params_M = jax.vmap(round_by_token)(params_M)
    x_MnBLD = _embed(config, params_M, tokens_nBL)
    with progress("  blocks quantised", config.n_layers, within=True) as show:
        for i, layer in enumerate(config.layers):
            block = f"blocks_{i}"
            chosen = tuple(p for p in _projections(params_M[block]) if re.fullmatch(pattern, f"{block}/{p}"))
            params_M[block], x_MnBLD, block_errors = jax.block_until_ready(
                _block(config, layer, chosen, how, bits, params_M[block], x_MnBLD, is_text_nBL)
            )
            errors |= {f"{block}/{path}": of_path for path, of_path in block_errors.items()}
            show(i + 1, "")
    last = "embedding" if tied else "unembedding"
    if any(re.fullmatch(pattern, name) for name in {last, "unembedding"}):
        params_M[last], errors[last] = _unembedding(config, how, bits, params_M, x_MnBLD, is_text_nBL)
    return params_M, errors


def _round_by_token(method: Method, name: str, params: Any) -> Any:
    return quantize_params(params, method.bits, name, *method.rounding[1:], adapt_groups=method.adapt_groups)


def _projections(block_params_M: Any) -> list[str]:
    """Return the paths of a block's matrices, such as attention/query."""
    return [f"{part}/{name}" for part in ("attention", "mlp") for name, w in block_params_M[part].items()
            if getattr(w, "ndim", 0) == 3]  # fmt: skip


@functools.partial(jax.jit, static_argnames="config")
def _embed(config: ModelConfig, params_M: Any, tokens_nBL: Array) -> Array:
    return over_members(lambda params: jax.lax.map(functools.partial(model.embed, config, params), tokens_nBL))(
        params_M
    )


@functools.partial(jax.jit, static_argnames=("config", "layer", "chosen", "how"), donate_argnames="x_MnBLD")
def _block(
    config: ModelConfig,
    layer: Layer,
    chosen: Sequence[str],
    how: Method,
    bits: Array,
    block_params_M: Any,
    x_MnBLD: Array,
    is_text_nBL: Array,
) -> tuple[Any, Array, dict[str, Errors]]:
    """Return the quantised block, the states after it, and its errors."""
    inputs_of = functools.partial(model.block_inputs, config, layer=layer)

    def one(block_params: Any, x_nBLD: Array) -> tuple[Any, Array, dict[str, Errors]]:
        matrices = {path: block_params[path.split("/")[0]][path.split("/")[1]] for path in chosen}

        def add(hessians: dict[str, Array], batch: tuple[Array, Array]) -> tuple[dict[str, Array], None]:
            x_BLD, is_text_BL = batch
            _, inputs = inputs_of(block_params, x_BLD)
            return {path: hessians[path] + _gram(inputs[path], is_text_BL) for path in chosen}, None

        zeros = {path: jnp.zeros((len(w_IO), len(w_IO))) for path, w_IO in matrices.items()}
        hessians, _ = jax.lax.scan(add, zeros, (x_nBLD, is_text_nBL))
        quantized, errors = _quantize(matrices, hessians, how._replace(bits=bits))
        new = {part: dict(value) if isinstance(value, dict) else value for part, value in block_params.items()}
        for path, q_IO in quantized.items():
            part, name = path.split("/")
            new[part][name] = q_IO
        out_nBLD = jax.lax.map(lambda x_BLD: inputs_of(new, x_BLD)[0], x_nBLD)
        return new, out_nBLD, errors

    return over_members(one)(block_params_M, x_MnBLD)


@functools.partial(jax.jit, static_argnames=("config", "how"))
def _unembedding(
    config: ModelConfig, how: Method, bits: Array, params_M: Any, x_MnBLD: Array, is_text_nBL: Array
) -> tuple[Array, Errors]:
    def one(params: Any, x_nBLD: Array) -> tuple[Array, Errors]:
        def add(hessian_DD: Array, batch: tuple[Array, Array]) -> tuple[Array, None]:
            x_BLD, is_text_BL = batch
            return hessian_DD + _gram(model.final_norm(config, params, x_BLD), is_text_BL), None

        w_DV = model.unembedding(params).T
        hessian_DD, _ = jax.lax.scan(add, jnp.zeros((len(w_DV), len(w_DV))), (x_nBLD, is_text_nBL))
        quantized, errors = _quantize({"unembedding": w_DV}, {"unembedding": hessian_DD}, how._replace(bits=bits))
        return quantized["unembedding"].T, errors["unembedding"]

    return over_members(one)(params_M, x_MnBLD)


def _quantize(
    matrices: dict[str, Array], hessians: dict[str, Array], method: Method
) -> tuple[dict[str, Array], dict[str, Errors]]:
    """Return one model's quantised matrices and their errors by path; those of equal shape share a program.

    On a CPU they go through it one after another. JAX's batched triangular solve and Cholesky wait there for threads of
    the pool that they run in, and two of them at a time (of two shapes) can wait for each other without end.
    """

    def one(w_IO: Array, hessian_II: Array) -> tuple[Array, Errors]:
        for_shape = method.of_inputs(len(w_IO))
        q_IO, used = gptq_with_damping(w_IO, hessian_II, *for_shape.arguments)
        size = _output(w_IO, hessian_II)

        def share(off_IO: Array) -> Array:
            return jnp.sqrt(_output(off_IO, hessian_II) / jnp.where(size > 0, size, 1.0))

        return q_IO, Errors(share(w_IO - q_IO), share(w_IO - round_to_nearest(w_IO, *for_shape.rounding)), used)

    quantized: dict[str, Array] = {}
    errors: dict[str, Errors] = {}
    for shape in sorted({w_IO.shape for w_IO in matrices.values()}):
        paths = [path for path, w_IO in matrices.items() if w_IO.shape == shape]
        stacked = (jnp.stack([arrays[path] for path in paths]) for arrays in (matrices, hessians))
        q_KIO, errors_K = over_members(one)(*stacked)
        for k, path in enumerate(paths):
            quantized[path], errors[path] = q_KIO[k], jax.tree.map(lambda x, k=k: x[k], errors_K)
    return quantized, errors


def _output(w_IO: Array, hessian_II: Array) -> Array:
    return jnp.sum(w_IO * matmul(hessian_II, w_IO))


def _gram(x_BLI: Array, is_text_BL: Array) -> Array:
    """Return 2 X^T X for the inputs of all tokens of text, in float32."""
    x_BLI = jnp.where(is_text_BL[:, :, None], x_BLI.astype(jnp.float32), 0.0)
    x_NI = x_BLI.reshape(-1, x_BLI.shape[-1])
    return 2 * matmul(x_NI.T, x_NI)


def _batches(tokens_NL: Array, batch_size: int) -> Array:
    """Reshape [N, L] to [n, B, L]."""
    size = next(b for b in range(min(batch_size, len(tokens_NL)), 0, -1) if len(tokens_NL) % b == 0)
    return tokens_NL.reshape(-1, size, tokens_NL.shape[1])
