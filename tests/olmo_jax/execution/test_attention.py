"""Each form of attention against softmax(q k^T) v written out, value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from olmo_jax.execution import attention


def written_out(q_BLHK, k_BLGK, v_BLGK, visible=None):
    """Compute softmax attention in float64, all heads and pairs at once."""
    repeats = q_BLHK.shape[2] // k_BLGK.shape[2]
    k, v = (jnp.repeat(x, repeats, axis=2) for x in (k_BLGK, v_BLGK))
    scores = jnp.einsum("blhk,bshk->bhls", q_BLHK, k) / np.sqrt(q_BLHK.shape[-1])
    visible = np.tril(np.ones(scores.shape[-2:], bool))[None, None] if visible is None else visible
    return jnp.einsum("bhls,bshk->blhk", jax.nn.softmax(jnp.where(visible, scores, -jnp.inf)), v)


attend = jax.jit(lambda *x: attention.causal_attention(*x, "blocked"))


def heads(length, n_heads, kv_heads, width=8, dtype=np.float64):
    rng = np.random.default_rng(length)
    shapes = (2, length, n_heads, width), (2, length, kv_heads, width), (2, length, kv_heads, width)
    return tuple(jnp.asarray(3 * rng.normal(size=shape), dtype) for shape in shapes)


def value_and_pulled_back(attend, inputs, to_pull_back):
    """Return the output of `attend` and the cotangents of its inputs, computed by one program."""

    def attend_and_pull_back(inputs, to_pull_back):
        value, pull_back = jax.vjp(attend, *inputs)
        return value, pull_back(to_pull_back)

    return jax.jit(attend_and_pull_back)(inputs, to_pull_back)


@pytest.mark.parametrize(
    ("form", "length", "window"),
    [("dense", 65, 0), ("blocked", 1, 0), ("blocked", 65, 0), ("blocked", 200, 0)]
    + [("dense", 65, 10), ("blocked", 200, 100)]
    + [pytest.param("blocked", 65, window, marks=pytest.mark.slow) for window in (1, 10, 65)],
)
def test_attention_and_gradients_match_the_float64_formula(form, length, window):
    with jax.enable_x64(True):
        inputs = heads(length, 4, 2)
        to_pull_back = jnp.asarray(np.random.default_rng(0).normal(size=inputs[0].shape))
        distance = np.arange(length)[:, None] - np.arange(length)
        visible = ((distance >= 0) & (distance < (window or length)))[None, None]
        value, pulled = value_and_pulled_back(
            lambda *x: attention.causal_attention(*x, form, window=window), inputs, to_pull_back
        )
        expected, expected_pulled = value_and_pulled_back(lambda *x: written_out(*x, visible), inputs, to_pull_back)
        # jax's own form takes its softmax in float32.
        precision = 1e-12 if form == "blocked" else 1e-5
        np.testing.assert_allclose(value, expected, atol=precision)
        for ours, theirs in zip(pulled, expected_pulled, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=20 * precision)


@pytest.mark.parametrize(("form", "length"), [("dense", 65), ("blocked", 65), ("blocked", 200)])
def test_packed_sequences_attend_within_their_spans(form, length):
    """A row packs a context (one third), two continuations of it, and another text (the last quarter)."""
    first, second, other = length // 3, length // 2, 3 * length // 4
    visible = np.zeros((2, 1, length, length), bool)
    context, end, start = (np.zeros((2, length), np.int32) for _ in range(3))
    for i in range(length):
        begin = max(b for b in (0, first, second, other) if b <= i)
        context[:, i] = end[:, i] = start[:, i] = begin
        visible[:, 0, i, begin : i + 1] = True
        if first <= i < other:
            context[:, i], end[:, i] = 0, first
            visible[:, 0, i, :first] = True
    spans = attention.Spans(context, end, start)
    np.testing.assert_array_equal(spans.seen_B1LL, visible)
    np.testing.assert_array_equal(spans.position_BL, visible.sum(axis=(1, 3)) - 1)
    inputs = heads(length, 4, 2, dtype=np.float32)
    ours = attention.causal_attention(*inputs, form, spans.seen_B1LL)
    np.testing.assert_allclose(ours, written_out(*inputs, visible), atol=2e-5)


def test_large_scores_do_not_overflow():
    q, k, v = heads(70, 2, 2, dtype=np.float32)
    gradient = jax.jit(jax.grad(lambda q: jnp.sum(attention.causal_attention(1e4 * q, k, v, "blocked"))))(q)
    assert np.isfinite(gradient).all()


def test_bfloat16_heads_have_a_float32_softmax():
    q, k, v = heads(130, 2, 2, dtype=np.float32)
    half = attend(*(x.astype(jnp.bfloat16) for x in (q, k, v)))
    assert half.dtype == jnp.bfloat16
    rounded = (x.astype(jnp.bfloat16).astype(jnp.float32) for x in (q, k, v))
    np.testing.assert_allclose(np.float32(half), jax.jit(written_out)(*rounded), atol=0.05)


def test_attention_under_vmap_matches_single_members():
    stack = tuple(jnp.stack([x, 2 * x]) for x in heads(100, 2, 2, dtype=np.float32))
    together = jax.jit(jax.vmap(attend))(*stack)
    for m in range(2):
        np.testing.assert_allclose(together[m], attend(*(x[m] for x in stack)), atol=1e-6)


def test_blocked_attention_computes_little_more_than_half_of_dense():
    inputs = heads(512, 2, 2, width=64, dtype=np.float32)

    def counted(form):
        attend = jax.jit(lambda *x: attention.causal_attention(*x, form))
        return attend.lower(*inputs).compile().cost_analysis()["flops"]

    assert 0.5 < counted("blocked") / counted("dense") < 0.65


@pytest.mark.parametrize("width", [8, 64])
def test_a_single_key_has_zero_gradient(width):
    q, k, v = heads(1, 4, 4, width, np.float32)
    dq, dk, _ = jax.jit(jax.grad(lambda *x: jnp.sum(attend(*x) ** 3), (0, 1, 2)))(q, k, v)
    assert not np.any(dq) and not np.any(dk)
