"""Alignment of states and matrices against closed forms, definitions in NumPy, and the null distribution."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geometry.alignment import alignment_dimension, log_alignment_ratio, principal_alignment

RNG = np.random.default_rng(3)


def test_inputs_along_the_one_direction_that_is_read_are_fully_aligned():
    v_I = RNG.standard_normal(64)
    w_OI, x_NI = np.outer(RNG.standard_normal(20), v_I), np.outer(RNG.standard_normal(30), v_I)
    assert float(log_alignment_ratio(w_OI, x_NI)) == pytest.approx(1, abs=1e-5)


def test_ratios_of_independent_and_of_orthogonal_inputs():
    w_OI, x_NI = RNG.standard_normal((400, 256)), RNG.standard_normal((500, 256))
    ratio = log_alignment_ratio(w_OI, x_NI)
    assert float(ratio) == pytest.approx(0.5, abs=0.005)
    assert float(alignment_dimension(ratio, 256)) == pytest.approx(256, rel=0.05)
    assert float(alignment_dimension(1.0, 256)) == pytest.approx(1)
    w_OI[:, :128], x_NI[:, 128:] = 0, 0
    assert float(log_alignment_ratio(w_OI, x_NI)) == -np.inf


@pytest.mark.parametrize("scale", [1.0, 1e25, 1e-25])
def test_the_ratio_is_that_of_its_definition_at_any_scale(scale):
    w_OI, x_NI = RNG.standard_normal((7, 12)) + 1, RNG.standard_normal((40, 12)) + 2

    def rms(x):
        return np.sqrt((x**2).mean())

    expected = np.log(rms(x_NI @ w_OI.T) / rms(w_OI) / rms(x_NI)) / np.log(12)
    assert float(log_alignment_ratio(scale * w_OI, x_NI / scale)) == pytest.approx(expected, rel=1e-5)


def test_overlap_is_that_of_its_definition():
    x_ND = RNG.standard_normal((200, 10)) * np.arange(1, 11) + 5
    w_VD = RNG.standard_normal((50, 10)) * np.arange(10, 0, -1)
    covariance = np.cov(x_ND.T)
    u_DK = np.linalg.eigh(covariance)[1][:, -3:]
    v_DK = np.linalg.svd(w_VD)[2][:3].T
    overlap, z = principal_alignment(x_ND, w_VD, 3)
    assert float(overlap) == pytest.approx(np.linalg.norm(v_DK.T @ u_DK) ** 2 / 3, rel=1e-3)
    assert float(z) == pytest.approx((float(overlap) - 0.3) / np.sqrt(2 * 49 / (100 * 9 * 12)), rel=1e-4)
    aligned, z = principal_alignment(x_ND, x_ND - x_ND.mean(axis=0), 3)
    assert float(aligned) == pytest.approx(1, rel=1e-4)
    assert float(z) > 5


def test_the_z_score_of_random_subspaces_is_standard():
    keys = jax.random.split(jax.random.key(0), 4000)

    def draw(key):
        x, w = (jax.random.normal(k, (40, 12)) for k in jax.random.split(key))
        return principal_alignment(x, w, 4)

    overlap, z = jax.lax.map(draw, keys, batch_size=500)
    assert float(overlap.mean()) == pytest.approx(4 / 12, abs=4 * float(overlap.std()) / np.sqrt(4000))
    assert float(z.mean()) == pytest.approx(0, abs=4 / np.sqrt(4000))
    assert float(z.std()) == pytest.approx(1, abs=0.05)


@given(st.sampled_from((2, 5, 30)), st.sampled_from((1, 20)), st.sampled_from((1, 20)), st.integers(0, 2**16))
def test_no_inputs_are_aligned_by_more_than_one(width, rows, count, seed):
    rng = np.random.default_rng(seed)
    ratio = float(log_alignment_ratio(rng.standard_normal((rows, width)), rng.standard_normal((count, width))))
    assert ratio <= 1 + 1e-5


def test_what_has_no_value_is_nan_and_what_cannot_be_is_refused():
    ones = np.ones((4, 3))
    for w, x in ((0 * ones, ones), (ones, 0 * ones), (ones * np.nan, ones), (ones[:, :1], ones[:, :1])):
        assert np.isnan(float(log_alignment_ratio(w, x)))
    assert all(np.isnan(float(v)) for v in principal_alignment(np.full((9, 5), np.nan), RNG.standard_normal((9, 5)), 2))
    with pytest.raises(ValueError, match="widths of 3 and 2"):
        log_alignment_ratio(ones, ones[:, :2])
    with pytest.raises(ValueError, match="widths of 3 and 2"):
        principal_alignment(ones[:, :2], ones, 1)
    for k in (0, 3, 4):
        with pytest.raises(ValueError, match=f"k = {k}: needs 1 to 2"):
            principal_alignment(ones, ones, k)
