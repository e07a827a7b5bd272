import jax
import jax.numpy as jnp
import numpy as np
import pytest

from olmo_jax import loss

B, L, D, V = 3, 10, 8, 23


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return rng.normal(size=(B, L, D)), rng.normal(size=(V, D)), rng.integers(0, V, (B, L)), rng.random((B, L))


def naive(x_BLD, w_VD, targets_BL, weights_BL, z_loss):
    logits_BLV = jnp.einsum("bld,vd->blv", x_BLD, w_VD)
    log_z_BL = jax.nn.logsumexp(logits_BLV, axis=-1)
    hit_BL = jnp.take_along_axis(logits_BLV, targets_BL[..., None], axis=-1)[..., 0]
    per_token = log_z_BL - hit_BL + z_loss * log_z_BL**2
    return jnp.sum(weights_BL * per_token) / jnp.sum(weights_BL)


@pytest.mark.parametrize(("chunk", "tile"), [(1, 23), (3, 7), (10, 7), (4, None), (None, None)])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_value_and_gradients_equal_the_naive_loss_in_float64(arrays, chunk, tile, z_loss):
    with jax.enable_x64(True):
        x_BLD, w_VD, targets_BL, weights_BL = map(jnp.asarray, arrays)

        def ours(x, w):
            return loss.cross_entropy(x, w, targets_BL, weights_BL, z_loss, chunk, tile).objective

        value, gradients = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))(x_BLD, w_VD)
        of_naive = jax.jit(jax.value_and_grad(naive, argnums=(0, 1)))
        expected = of_naive(x_BLD, w_VD, targets_BL, weights_BL, z_loss)
        assert float(value) == pytest.approx(float(expected[0]), rel=1e-12)
        for ours_, theirs in zip(gradients, expected[1], strict=True):
            np.testing.assert_allclose(ours_, theirs, atol=1e-12)


def test_reported_cross_entropy_excludes_the_z_loss(arrays):
    x_BLD, w_VD, targets_BL, _ = (jnp.asarray(a, jnp.int32 if a.dtype.kind == "i" else jnp.float32) for a in arrays)
    result = loss.cross_entropy(x_BLD, w_VD, targets_BL, z_loss=0.5)
    plain = naive(x_BLD, w_VD, targets_BL, jnp.ones((B, L)), 0.0)
    assert float(result.cross_entropy) == pytest.approx(float(plain), rel=1e-5)
    assert float(result.objective) > float(result.cross_entropy)


def test_gradients_under_vmap_match_single_members(arrays):
    x_BLD, w_VD, targets_BL, _ = (jnp.asarray(a, jnp.int32 if a.dtype.kind == "i" else jnp.float32) for a in arrays)
    grad = jax.jit(jax.grad(lambda w: loss.cross_entropy(x_BLD, w, targets_BL, chunk=4).objective))
    stack_MVD = jnp.stack([w_VD, 2 * w_VD])
    for together, w in zip(jax.vmap(grad)(stack_MVD), stack_MVD, strict=True):
        np.testing.assert_allclose(together, grad(w), atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 4, None])
def test_token_losses_are_per_position(arrays, chunk):
    x_BLD, w_VD, targets_BL, _ = (jnp.asarray(a, jnp.int32 if a.dtype.kind == "i" else jnp.float32) for a in arrays)
    log_p = jax.nn.log_softmax(x_BLD @ w_VD.T)
    expected = -np.take_along_axis(np.asarray(log_p), np.asarray(targets_BL)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(loss.token_losses(x_BLD, w_VD, targets_BL, chunk), expected, rtol=1e-5)


def test_the_full_logits_are_never_held_in_memory():
    """The compiled gradient's temporaries stay well under the logits' own size, and the naive loss's don't."""
    x_BLD, w_VD = jnp.zeros((8, 512, 16)), jnp.zeros((16384, 16))
    targets_BL = jnp.zeros((8, 512), jnp.int32)
    logits = 4 * 8 * 512 * 16384

    def temporaries(objective):
        compiled = jax.jit(jax.grad(objective, argnums=(0, 1))).lower(x_BLD, w_VD).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(lambda x, w: naive(x, w, targets_BL, jnp.ones((8, 512)), 0.0)) > logits
    assert temporaries(lambda x, w: loss.cross_entropy(x, w, targets_BL).objective) < 0.25 * logits


def test_large_vocabularies_need_a_tenth_of_the_naive_temporaries():
    x_BLD, w_VD, targets_BL = jnp.zeros((8, 128, 256)), jnp.zeros((50304, 256)), jnp.zeros((8, 128), jnp.int32)
    ones_BL = jnp.ones((8, 128))

    def temporaries(objective):
        compiled = jax.jit(jax.grad(objective, argnums=(0, 1))).lower(x_BLD, w_VD).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    ours = temporaries(lambda x, w: loss.cross_entropy(x, w, targets_BL).objective)
    assert ours < 0.1 * temporaries(lambda x, w: naive(x, w, targets_BL, ones_BL, 0.0))


@pytest.mark.parametrize(("length", "most", "chunk"), [(128, 20, 16), (128, 128, 128), (97, 20, 20), (97, 50, 49)])
def test_chunks_are_even_with_little_padding(length, most, chunk):
    assert loss.even_chunk(length, most) == chunk
