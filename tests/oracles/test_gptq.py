"""Rounding against Qwix 0.1.8 as it is installed, at 4 and 8 bits on its grid (ours: grid="gptq").

Its GPTQ takes [outputs, inputs] and adds 1 % of the mean of H's diagonal, as ours does. These tests avoid two
differences. It takes a group's scale from weights that lack the errors of the block of inputs (128) that the group
lies in, as the authors' code does; with blocks of one group there are none. And with dead inputs its damping is the
mean without their 1, and a column's scale that without their weights: these tests have no dead inputs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.gptq import gptq
from eval.quantize import round_to_nearest

pytestmark = pytest.mark.oracle


def problem(inputs, outputs):
    rng = np.random.default_rng(inputs)
    x_NI = rng.standard_normal((4 * inputs, inputs)) @ (np.eye(inputs) + rng.normal(0, inputs**-0.5, (inputs, inputs)))
    return rng.standard_normal((inputs, outputs)).astype(np.float32), (2 * x_NI.T @ x_NI).astype(np.float32)


def qwix_gptq(w_IO, hessian_II, group_size=None):
    from qwix._src.core import qarray
    from qwix.contrib import gptq_core

    tiles = {1: group_size} if group_size else {}
    how = qarray.HowToQuantize(qtype=jnp.int4, channelwise_axes=[0], tiled_axes=tiles)
    block = {"blocksize": group_size} if group_size else {}
    with jax.numpy_rank_promotion("allow"):
        quantized, _ = gptq_core.quantize_weight(jnp.asarray(w_IO.T), jnp.asarray(hessian_II), how, **block)
    return np.asarray(qarray.dequantize(quantized)).T


@pytest.mark.parametrize(("inputs", "outputs", "group_size"), [(128, 64, None), (64, 32, 16)])
def test_gptq_matches_qwix(inputs, outputs, group_size):
    w_IO, h_II = problem(inputs, outputs)
    ours = gptq(w_IO, h_II, 4, grid="gptq", group_size=group_size)
    same = np.isclose(ours, qwix_gptq(w_IO, h_II, group_size), rtol=1e-5, atol=1e-6)
    assert same.mean() >= 0.999
    assert not np.array_equal(ours, round_to_nearest(w_IO, 4, grid="gptq", group_size=group_size))


@pytest.mark.parametrize(("bits", "qtype"), [(4, jnp.int4), (8, jnp.int8)])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [None, 16])
def test_rounding_to_nearest_matches_qwix(bits, qtype, symmetric, group_size):
    import qwix

    w_IO, _ = problem(64, 32)
    theirs = qwix.quantize(
        jnp.asarray(w_IO),
        qtype,
        channelwise_axes=[1],
        tiled_axes={0: group_size} if group_size else {},
        calibration_method="absmax" if symmetric else "minmax",
    )
    ours = round_to_nearest(w_IO, bits, symmetric=symmetric, grid="gptq", group_size=group_size)
    np.testing.assert_allclose(ours, qwix.dequantize(theirs), rtol=1e-5, atol=1e-6)
