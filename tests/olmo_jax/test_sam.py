"""Sharpness-aware minimisation, against a float64 reference, against runs without it, and within one program."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from olmo_jax import model, optimizer
from olmo_jax.cohort import shape_of
from olmo_jax.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from olmo_jax.execution import plan as execution_plan
from olmo_jax.execution.members import over_members
from olmo_jax.step import init_member, member_step

V, D, B, L, STEPS = 40, 16, 4, 8, 4
MODEL = ModelConfig(
    vocab_size=V, pad_vocab_to=V, d_model=D, n_layers=1, n_heads=2, d_ff=32, context_length=L, norm="rms_norm"
)
BASE = TrainConfig(
    tokens=200 * B * L,
    model=MODEL,
    optimizer=OptimizerConfig(learning_rate=3e-3, weight_decay=0.3, clip_norm=0.5),
    data=DataConfig(bpe_vocab_size=V, sequence_length=L, batch_size=B),
)


def with_rho(rho, **changes):
    return dataclasses.replace(BASE, optimizer=dataclasses.replace(BASE.optimizer, sam_rho=rho), **changes)


def tokens(step):
    return np.random.default_rng(step).integers(0, V, size=(B, L + 1)).astype(np.int32)


def first_state(config, dtype=jnp.float32):
    params = jax.tree.map(lambda x: x.astype(dtype), model.init(config.model, jax.random.key(config.init_seed)))
    return init_member(params, config.optimizer)


def train(configs, mapping, dtype=jnp.float32, plan=None):
    """Return the losses `[S, M]` and the last parameters of a stack of members."""
    shape = shape_of(configs[0], "")
    shape = shape.with_config(model=dataclasses.replace(shape.model, compute_dtype=jnp.dtype(dtype).name))
    present = optimizer.options(configs)
    hyper = jax.tree.map(lambda *xs: np.stack(xs), *(optimizer.hyper(config, present) for config in configs))
    state = jax.tree.map(lambda *xs: jnp.stack(xs), *(first_state(config, dtype) for config in configs))
    step = jax.jit(
        lambda state, tokens_BL: over_members(
            lambda one, h: member_step(shape, one, h, tokens_BL, None, plan), mapping
        )(state, hyper)
    )
    losses = []
    for i in range(STEPS):
        state, metrics = step(state, tokens(i))
        losses.append(np.asarray(metrics.loss))
    return np.array(losses), jax.device_get(state.params)


def reference(config):
    """Return losses and parameters in float64: two gradients by jax.grad, and AdamW by optax."""
    rate = optimizer.learning_rate(optimizer.hyper(config), np.arange(1, STEPS + 1))
    settings = config.optimizer
    rule = optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.inject_hyperparams(optax.adamw)(
            0.0, b1=settings.beta1, b2=settings.beta2, eps=settings.eps, weight_decay=settings.weight_decay
        ),
    )

    def loss(params, tokens_BL):
        wide = dataclasses.replace(config.model, compute_dtype="float64")
        log_p = jax.nn.log_softmax(model.apply(wide, params, tokens_BL[:, :-1]).logits_BLV)
        return -jnp.mean(jnp.take_along_axis(log_p, tokens_BL[:, 1:, None], axis=2))

    params = first_state(config, jnp.float64).params
    state, losses = rule.init(params), []
    for i in range(STEPS):
        value, gradient = jax.value_and_grad(loss)(params, tokens(i))
        length = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient)))
        up = jax.tree.map(lambda w, g, n=length: w + settings.sam_rho * g / n, params, gradient)
        state[1].hyperparams["learning_rate"] = jnp.asarray(rate[i], jnp.float64)
        updates, state = rule.update(jax.grad(loss)(up, tokens(i)), state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(value))
    return np.array(losses), params


def test_sam_is_the_float64_reference():
    with jax.enable_x64(True):
        losses, params = train([with_rho(0.2)], "map", jnp.float64)
        expected_losses, expected = reference(with_rho(0.2))
        plain_losses, _ = reference(with_rho(0.0))
    np.testing.assert_allclose(losses[:, 0], expected_losses, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-5, atol=1e-7), params, expected)
    assert np.abs(expected_losses - plain_losses)[1:].min() > 1e-4  # so that a run without it would fail


def test_a_stack_without_it_has_the_same_program_as_before():
    assert optimizer.options([with_rho(0.0), BASE]) == ()
    assert optimizer.hyper(with_rho(0.0)) == optimizer.hyper(BASE)
    # No member takes a second gradient, so the programs agree to the last operation.
    shape, state, h = shape_of(BASE, ""), first_state(BASE), optimizer.hyper(BASE)
    without = jax.jit(lambda s, x: member_step(shape, s, h, x)).lower(state, tokens(0)).as_text()
    assert "stablehlo.case" not in without and "stablehlo.if" not in without


@pytest.mark.slow
@pytest.mark.parametrize("mapping", ["vmap", "map"])
def test_members_with_and_without_it_train_as_they_do_alone(mapping):
    configs = [with_rho(0.0), with_rho(0.05), with_rho(0.2, init_seed=1)]
    losses, params = train(configs, mapping)
    for m, config in enumerate(configs):
        alone, alone_params = train([config], mapping)
        np.testing.assert_allclose(losses[:, m], alone[:, 0], rtol=1e-5)
        jax.tree.map(
            lambda a, b, m=m: np.testing.assert_allclose(a[m], b[0], rtol=1e-3, atol=1e-5), params, alone_params
        )


@pytest.mark.slow
def test_parts_of_a_batch_share_the_gradient_that_is_ascended():
    """The whole batch's gradient is ascended, not that of each part, so microbatches change rounding only."""
    config = with_rho(0.2)
    whole, _ = train([config], "map")
    plan = execution_plan.forward(config.model)._replace(microbatches=2)
    np.testing.assert_allclose(train([config], "map", plan=plan)[0], whole, rtol=1e-5)
