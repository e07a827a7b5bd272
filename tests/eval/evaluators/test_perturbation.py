"""Noise has the requested size and is shared by models; truncation is compared with numpy's SVD."""

import jax
import numpy as np
import pytest

from eval.evaluators.perturbation import add_noise, kept_dimensions, truncate_unembedding
from olmo_jax import model

KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def params(tiny):
    return model.init(tiny.model, jax.random.key(0))


def differences(before, after):
    pairs = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    return {jax.tree_util.keystr(path): np.asarray(b) - np.asarray(a) for (path, a), b in pairs}


def test_absolute_noise_has_the_requested_standard_deviation_in_every_matrix(params):
    for off in differences(params, add_noise(params, KEY, 0.3)).values():
        assert off.std() == pytest.approx(0.3, rel=5 / np.sqrt(2 * off.size))
        assert abs(off.mean()) < 5 * 0.3 / np.sqrt(off.size)


def test_relative_noise_scales_with_the_norm_of_each_matrix(params):
    noisy = add_noise(params, KEY, 0.01, relative=True)
    before = {k: np.linalg.norm(-v) for k, v in differences(params, jax.tree.map(lambda x: 0 * x, params)).items()}
    for path, off in differences(params, noisy).items():
        assert np.linalg.norm(off) == pytest.approx(0.01 * before[path], rel=5 / np.sqrt(2 * off.size))


def test_noise_differs_between_matrices_and_is_shared_by_models_of_a_stack(params):
    off = list(differences(params, add_noise(params, KEY, 1.0)).values())
    same_shape = [o for o in off if o.shape == off[0].shape]
    assert len(same_shape) > 1
    assert np.abs(same_shape[0] - same_shape[1]).max() > 0.1
    stack = jax.tree.map(lambda x: jax.numpy.stack([x, 2 * x]), params)
    noisy = jax.jit(jax.vmap(lambda p: add_noise(p, KEY, 1.0)))(stack)
    for a, b in zip(jax.tree.leaves(stack), jax.tree.leaves(noisy), strict=True):
        np.testing.assert_allclose(b[0] - a[0], b[1] - a[1], atol=1e-5)


def test_noise_changes_matching_parameters_only_and_an_unmatched_pattern_is_refused(params):
    off = differences(params, add_noise(params, KEY, 1.0, pattern="unembedding"))
    assert [path for path, o in off.items() if o.any()] == ["['unembedding']"]
    with pytest.raises(ValueError, match="no matrix of the parameters matches 'head'"):
        add_noise(params, KEY, 1.0, pattern="head")


@pytest.mark.parametrize("rank", [1, 5, 16])
def test_a_truncated_unembedding_is_the_best_approximation_of_its_rank(params, rank):
    w_VD = np.asarray(params["unembedding"], np.float64)
    u, s, v = np.linalg.svd(w_VD, full_matrices=False)
    nearest = (u[:, :rank] * s[:rank]) @ v[:rank]
    np.testing.assert_allclose(truncate_unembedding(params, rank)["unembedding"], nearest, atol=2e-6)


def test_padding_rows_do_not_affect_the_truncation(params):
    padded = params | {"unembedding": params["unembedding"].at[290:].set(100.0)}
    kept = truncate_unembedding(padded, 3, vocabulary=290)["unembedding"]
    without = truncate_unembedding(params | {"unembedding": params["unembedding"][:290]}, 3)["unembedding"]
    np.testing.assert_allclose(kept[:290], without, atol=2e-6)


def test_a_fraction_of_the_dimensions_keeps_at_least_one():
    assert [kept_dimensions(share, 64) for share in (1.0, 0.5, 0.001)] == [64, 32, 1]
