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


def wsd(**numbers):
    return run(schedule="wsd", **{"warmup_fraction": 0.1, "warmup_from": 0.0, "learning_rate": 2.0} | numbers)


def test_warm_up_stable_decay_is_that_of_optax():
    h = optimizer.hyper(wsd(decay_fraction=0.2, final_fraction=0.25))
    pieces = [optax.linear_schedule(0.0, 2.0, 10), optax.constant_schedule(2.0), optax.linear_schedule(2.0, 0.5, 20)]
    theirs = optax.join_schedules(pieces, [10, 80])
    steps = np.arange(1, 121)
    np.testing.assert_allclose(optimizer.learning_rate(h, steps), jax.vmap(theirs)(steps), rtol=1e-5)


def test_the_square_root_decays_fast_first():
    h = optimizer.hyper(wsd(decay_fraction=0.2, final_fraction=0.0, decay_shape="sqrt"))
    rates = np.asarray(optimizer.learning_rate(h, np.array([50, 80, 85, 96, 100])))
    np.testing.assert_allclose(rates, 2.0 * (1 - np.sqrt([0, 0, 0.25, 0.8, 1])), atol=1e-6)


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, [2, 2, 2]), (1.0, [2, 1, 0])])
def test_no_decay_stays_at_the_peak_and_a_whole_one_starts_after_the_warm_up(fraction, expected):
    h = optimizer.hyper(wsd(decay_fraction=fraction, final_fraction=0.0))
    np.testing.assert_allclose(optimizer.learning_rate(h, np.array([10, 55, 100])), expected, atol=1e-6)


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
    settings = OptimizerConfig(decay_embeddings=decay_embeddings, decay_norms=decay_norms)
    ours = optimizer.update_rule(h, 0.1, settings)
    state, expected_state, expected = optimizer.init(params, settings), theirs.init(params), params
    for _ in range(4):
        gradients = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), params)
        updates, state = jax.jit(ours.update)(gradients, state, params)
        params = optax.apply_updates(params, updates)
        updates, expected_state = jax.jit(theirs.update)(gradients, expected_state, expected)
        expected = optax.apply_updates(expected, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), params, expected)


PARAMS = {
    "embedding": (7, 4),
    "unembedding": (7, 4),
    "blocks_0": {"attention": {"query": (4, 4)}, "mlp": {"up": (4, 12)}, "mlp_norm": {"scale": (4,)}},
    "final_norm": {"scale": (4,)},
}


def updates_of(rule, state, params, steps=3):
    """Return the parameters after some steps on fixed random gradients."""
    rng = np.random.default_rng(1)
    for _ in range(steps):
        gradients = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), params)
        updates, state = jax.jit(rule.update)(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params


def random_params(dtype):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s), dtype), PARAMS, is_leaf=lambda s: isinstance(s, tuple)
    )


def test_rates_of_groups_are_those_of_separate_optimisers():
    with jax.enable_x64(True):
        params = random_params(jnp.float64)
        config = run(weight_decay=0.2, clip_norm=0.0, embedding_rate=3.0, block_rate=0.5)
        h = optimizer.hyper(config)
        ours = optimizer.update_rule(h, 0.1, config.optimizer)
        group = {"embedding": "embedding", "unembedding": "head", "blocks_0": "block", "final_norm": "block"}
        rates = {"embedding": 0.3, "head": 0.1, "block": 0.05}
        theirs = optax.partition(
            {name: optax.adamw(rate, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.2) for name, rate in rates.items()},
            {key: jax.tree.map(lambda _, name=group[key]: name, value) for key, value in params.items()},
        )
        a = updates_of(ours, optimizer.init(params, config.optimizer), params)
        b = updates_of(theirs, theirs.init(params), params)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)


def newton_schulz(x):
    """Return five steps of the quintic iteration, in float64, as in Jordan's description of Muon."""
    wide = x.shape[0] > x.shape[1]
    x = x.T if wide else x
    x = x / (np.linalg.norm(x) + 1e-8)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if wide else x


def test_muon_is_the_float64_reference_on_matrices_of_blocks_and_adamw_elsewhere():
    beta, rate, decay = 0.8, 0.1, 0.2
    with jax.enable_x64(True):
        params = random_params(jnp.float64)
        config = run(name="muon", muon_beta=beta, weight_decay=decay, clip_norm=0.0)
        h = optimizer.hyper(config)
        rule = optimizer.update_rule(h, rate, config.optimizer)
        after = updates_of(rule, optimizer.init(params, config.optimizer), params)
        adamw = optax.adamw(rate, b1=0.9, b2=0.95, eps=1e-8, weight_decay=decay)
        by_adamw = updates_of(adamw, adamw.init(params), params)
    rng, momentum = np.random.default_rng(1), jax.tree.map(np.zeros_like, params)
    reference = jax.tree.map(np.asarray, params)
    for t in range(1, 4):
        gradients = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
        momentum = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, momentum, gradients)

        def step(w, m, g, t=t):
            # Nesterov: the momentum as it would be after another step with this gradient, without its bias.
            ahead = beta * m / (1 - beta ** (t + 1)) + (1 - beta) * g / (1 - beta**t)
            return w - rate * (0.2 * np.sqrt(max(w.shape)) * newton_schulz(ahead) + decay * w) if w.ndim == 2 else w

        reference = jax.tree.map(step, reference, momentum, gradients)
    for sublayer, name in (("attention", "query"), ("mlp", "up")):
        expected = reference["blocks_0"][sublayer][name]
        np.testing.assert_allclose(after["blocks_0"][sublayer][name], expected, rtol=1e-5)
    for at in (lambda p: p["embedding"], lambda p: p["unembedding"], lambda p: p["blocks_0"]["mlp_norm"]["scale"]):
        np.testing.assert_allclose(at(after), at(by_adamw), rtol=1e-6)


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
        "embedding_rate",
        "block_rate",
    ):
        config = run(**{name: 0.123})
        assert float(getattr(optimizer.hyper(config), name)) == pytest.approx(0.123)
        assert optimizer.hyper(config) != base
    assert optimizer.hyper(run(warmup_fraction=0.5)).warmup_steps == 50
    assert optimizer.hyper(dataclasses.replace(run(), tokens=77)).total_steps == 77
