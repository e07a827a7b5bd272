import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geometry import gauge, isotropy, spectrum

SPECTRAL = [
    spectrum.effective_rank,
    spectrum.singular_entropy,
    spectrum.stable_rank,
    spectrum.participation_ratio,
]


@jax.jit
def measure(w_VD):
    s_D = spectrum.singular_values(w_VD)
    isotropic = [isotropy.mean_cosine(w_VD), isotropy.partition_isotropy(w_VD), isotropy.isoscore(w_VD)]
    return jnp.stack([metric(s_D) for metric in SPECTRAL] + isotropic)


def invisible(norm, shape, rng):
    """Return a change of W that leaves the logits of a decoder with this norm unchanged."""
    change = np.broadcast_to(rng.standard_normal((1, shape[1])), shape)
    if norm == "layer_norm":
        change = change + rng.standard_normal((shape[0], 1))
    return change


@pytest.mark.parametrize("norm", gauge.NORMS)
def test_metrics_after_gauge_fixing_ignore_changes_that_leave_logits_unchanged(matrices, norm):
    w_VD = matrices["gaussian"]
    changed = w_VD + invisible(norm, w_VD.shape, np.random.default_rng(1))
    np.testing.assert_allclose(
        measure(gauge.gauge_fix(changed, norm)), measure(gauge.gauge_fix(w_VD, norm)), rtol=1e-4, atol=1e-7
    )
    # Raw metrics change, except for the last one, IsoScore, which centres.
    assert np.abs(measure(changed) / measure(w_VD) - 1)[:-1].min() > 0.1


def states(norm, rng):
    h_ND = rng.standard_normal((16, 48))
    if norm == "rms_norm":
        return h_ND / np.sqrt(np.mean(h_ND**2, axis=1, keepdims=True))
    h_ND = (h_ND - h_ND.mean(axis=1, keepdims=True)) / h_ND.std(axis=1, keepdims=True)
    return h_ND if norm == "layer_norm" else h_ND * rng.uniform(0.5, 2, 48) + rng.standard_normal(48)


@pytest.mark.parametrize("norm", gauge.NORMS)
def test_gauge_fixing_keeps_the_predictions(matrices, norm):
    rng = np.random.default_rng(2)
    w_VD, h_ND = matrices["common vector"], jnp.float32(states(norm, rng))
    changed = w_VD + invisible(norm, w_VD.shape, rng)

    def log_probabilities(w):
        return jax.nn.log_softmax(jnp.matmul(h_ND, jnp.float32(w).T, precision="highest"))

    for other in (changed, gauge.gauge_fix(w_VD, norm), gauge.gauge_fix(changed, norm)):
        np.testing.assert_allclose(log_probabilities(other), log_probabilities(w_VD), atol=5e-5)


@pytest.mark.parametrize("norm", ["affine_layer_norm", "rms_norm"])
def test_the_ones_direction_is_kept_if_logits_depend_on_it(matrices, norm):
    fixed = np.asarray(gauge.gauge_fix(matrices["gaussian"], norm))
    assert np.abs(fixed.mean(axis=1)).max() > 0.01


def test_layer_norm_removes_one_direction(matrices):
    s_D = spectrum.singular_values(gauge.gauge_fix(matrices["gaussian"], "layer_norm"))
    assert s_D[-1] < 1e-6 * s_D[0]
    assert s_D[-2] > 1e-2 * s_D[0]


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 1e3), norm=st.sampled_from(gauge.NORMS))
@settings(max_examples=25, deadline=None)
def test_gauge_fixing_is_idempotent(seed, scale, norm):
    w_VD = (scale * np.random.default_rng(seed).standard_normal((11, 5))).astype(np.float32)
    once = np.asarray(gauge.gauge_fix(w_VD, norm))
    np.testing.assert_allclose(once.sum(axis=0), 0, atol=1e-5 * scale)
    if norm == "layer_norm":
        np.testing.assert_allclose(once.sum(axis=1), 0, atol=1e-5 * scale)
    np.testing.assert_allclose(gauge.gauge_fix(once, norm), once, atol=1e-6 * scale)
    assert np.linalg.norm(once) <= np.linalg.norm(w_VD) * (1 + 1e-6)


def test_gauge_fixing_equal_rows_gives_zeros():
    np.testing.assert_array_equal(gauge.centred(np.full((7, 3), 0.1)), np.zeros((7, 3)))


def test_vmap_equals_a_loop_and_nan_stays_in_its_column(matrices):
    stack = np.stack([matrices["gaussian"], matrices["common vector"]])
    fix = functools.partial(gauge.gauge_fix, norm="layer_norm")
    loop = np.stack([fix(w) for w in stack])
    np.testing.assert_allclose(jax.jit(jax.vmap(fix))(stack), loop, atol=1e-6)
    stack[0, 0, 0] = np.nan
    assert np.isnan(jax.vmap(fix)(stack)[0]).all()
    assert np.isfinite(jax.vmap(fix)(stack)[1]).all()


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="'batch_norm'.*layer_norm, affine_layer_norm, rms_norm"):
        gauge.gauge_fix(np.zeros((3, 2)), "batch_norm")
