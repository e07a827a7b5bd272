import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from olmo_jax import optimizer
from olmo_jax.config import DataConfig, OptimizerConfig, TrainConfig


def run(steps=100, **numbers):
    data = DataConfig(batch_size=1, sequence_length=1)
    return TrainConfig(tokens=steps, data=data, optimizer=OptimizerConfig(**numbers))


def test_the_cosine_passes_through_olmos_points():
    h = optimizer.hyper(run(learning_rate=2.0, warmup_fraction=0.2, warmup_from=0.1, final_fraction=0.1))
    rate = {t: float(optimizer.learning_rate(h, np.array(t))) for t in (1, 10, 20, 60, 100, 150)}
    assert rate[1] == pytest.approx(2.0 * (0.1 + 0.9 / 20))
    assert rate[10] == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert rate[20] == pytest.approx(2.0)
    assert rate[60] == pytest.approx(0.2 + (2.0 - 0.2) / 2)
    assert rate[100] == pytest.approx(0.2)
    assert rate[150] == pytest.approx(0.2)


def test_the_linear_schedule_ends_at_zero_and_no_warm_up_starts_at_the_peak():
    h = optimizer.hyper(run(steps=10, learning_rate=1.0, warmup_fraction=0.0, final_fraction=0.0, schedule="linear"))
    rates = np.asarray(optimizer.learning_rate(h, np.arange(0, 11)))
    np.testing.assert_allclose(rates, np.linspace(1, 0, 11), atol=1e-6)


def test_members_of_one_program_follow_separate_schedules():
    runs = [run(steps=10, warmup_fraction=0.0, final_fraction=0.0, schedule=name) for name in ("cosine", "linear")]
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *map(optimizer.hyper, runs))
    together = jax.jit(jax.vmap(optimizer.learning_rate, in_axes=(0, None)))(stacked, jnp.float32(4))
    separate = [optimizer.learning_rate(optimizer.hyper(one), np.array(4)) for one in runs]
    np.testing.assert_allclose(together, separate, rtol=1e-6)
    assert together[0] > together[1] == pytest.approx(0.6 * 3e-4)


def test_dose_is_the_sum_of_rate_times_decay():
    config = run(steps=50, learning_rate=1e-2, weight_decay=0.5, warmup_fraction=0.1)
    rates = optimizer.learning_rate(optimizer.hyper(config), np.arange(1, 51))
    assert optimizer.cumulative_weight_decay(config, 50) == pytest.approx(0.5 * float(rates.sum()), rel=1e-5)
    assert optimizer.cumulative_weight_decay(config, 0) == 0


@pytest.mark.parametrize("clip_norm", [0.0, 0.3])
@pytest.mark.parametrize(("decay_embeddings", "decay_norms"), [(True, True), (False, True), (True, False)])
def test_traced_hyperparameters_give_the_updates_of_optax(clip_norm, decay_embeddings, decay_norms):
    rng = np.random.default_rng(0)
    shapes = {"embedding": (5, 3), "positions": (4, 3), "block": {"w": (3, 3), "scale": (3,)}}
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s)), shapes, is_leaf=lambda s: isinstance(s, tuple))
    config = run(learning_rate=0.1, weight_decay=0.2, clip_norm=clip_norm, beta1=0.8, beta2=0.9)
    h = jax.tree.map(jnp.asarray, optimizer.hyper(config))
    mask = {"embedding": decay_embeddings, "positions": decay_embeddings, "block": {"w": True, "scale": decay_norms}}
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    theirs = optax.chain(clip, optax.adamw(0.1, b1=0.8, b2=0.9, eps=1e-8, weight_decay=0.2, mask=mask))
    ours = optimizer.adamw(h, 0.1, decay_embeddings, decay_norms)
    state, expected_state, expected = optimizer.init(params), theirs.init(params), params
    for _ in range(4):
        gradients = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), params)
        updates, state = jax.jit(ours.update)(gradients, state, params)
        params = optax.apply_updates(params, updates)
        updates, expected_state = jax.jit(theirs.update)(gradients, expected_state, expected)
        expected = optax.apply_updates(expected, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), params, expected)


def test_every_optimizer_setting_reaches_the_update():
    base = optimizer.hyper(run())
    for name in (
        "learning_rate",
        "weight_decay",
        "beta1",
        "beta2",
        "eps",
        "clip_norm",
        "warmup_from",
        "final_fraction",
    ):
        config = run(**{name: 0.123})
        assert float(getattr(optimizer.hyper(config), name)) == pytest.approx(0.123)
        assert optimizer.hyper(config) != base
    assert optimizer.hyper(run(warmup_fraction=0.5)).warmup_steps == 50
    assert optimizer.hyper(dataclasses.replace(run(), tokens=77)).total_steps == 77
