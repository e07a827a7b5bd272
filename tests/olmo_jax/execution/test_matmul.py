import jax
import jax.numpy as jnp
import numpy as np

from olmo_jax.execution import matmul


def test_linear_and_its_gradients_match_matmul():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x_BLI, w_IO, dy_BLO = (jnp.asarray(rng.normal(size=s)) for s in ((2, 5, 3), (3, 7), (2, 5, 7)))
        y_BLO, pull_back = jax.vjp(matmul.linear, x_BLI, w_IO)
        np.testing.assert_allclose(y_BLO, x_BLI @ w_IO, rtol=1e-14)
        dx_BLI, dw_IO = pull_back(dy_BLO)
        np.testing.assert_allclose(dx_BLI, np.einsum("blo,io->bli", dy_BLO, w_IO), rtol=1e-12)
        np.testing.assert_allclose(dw_IO, np.einsum("bli,blo->io", x_BLI, dy_BLO), rtol=1e-12)


def test_linear_casts_w_to_the_dtype_of_x_and_its_gradient_back():
    x_BLI, w_IO = jnp.ones((1, 2, 3), jnp.bfloat16), jnp.ones((3, 4), jnp.float32)
    assert matmul.linear(x_BLI, w_IO).dtype == jnp.bfloat16
    assert jax.grad(lambda w: jnp.sum(matmul.linear(x_BLI, w)))(w_IO).dtype == jnp.float32


def test_gradients_under_vmap_match_single_members():
    rng = np.random.default_rng(1)
    x_MBLI, w_MIO = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, 2, 5, 4), (3, 4, 6)))
    gradient = jax.jit(jax.grad(lambda w, x: jnp.sum(matmul.linear(x, w) ** 2)))
    for m, together in enumerate(jax.jit(jax.vmap(gradient))(w_MIO, x_MBLI)):
        np.testing.assert_allclose(together, gradient(w_MIO[m], x_MBLI[m]), rtol=1e-5)


def test_transposed_swaps_the_last_two_dimensions():
    x = jnp.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(matmul.transposed(x), np.swapaxes(x, 1, 2))
