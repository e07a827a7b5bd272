"""Interventions on the unembedding, against float64 references, against runs without one, and as one program."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geometry.gauge import gauge_fix
from geometry.spectrum import effective_rank, singular_values
from olmo_jax import hf, intervention, loss, model, optimizer
from olmo_jax.cohort import shape_of
from olmo_jax.config import (
    ConfigError,
    DataConfig,
    InterventionConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from olmo_jax.config.model import parameter_count
from olmo_jax.execution import flops
from olmo_jax.step import init_member, member_step

V, D, B, L = 40, 16, 4, 8
MODEL = ModelConfig(
    vocab_size=V, pad_vocab_to=48, d_model=D, n_layers=1, n_heads=2, d_ff=32, context_length=L, norm="rms_norm"
)
BASE = TrainConfig(
    tokens=200 * B * L,
    model=MODEL,
    optimizer=OptimizerConfig(learning_rate=3e-3, weight_decay=0.3),
    data=DataConfig(bpe_vocab_size=V, sequence_length=L, batch_size=B),
)


def arm(base=BASE, **numbers):
    return dataclasses.replace(base, intervention=InterventionConfig(**numbers))


def tokens(step):
    # Few tokens are frequent, as in text, so that there is something to learn.
    return np.random.default_rng(step).zipf(1.6, size=(B, L + 1)).clip(0, V - 1).astype(np.int32)


@functools.cache
def train(config, steps, wide=False, present=None):
    """Return the losses and the last parameters of one member, in float64 if `wide`."""
    with jax.enable_x64(wide):
        shape = shape_of(config, "")
        if wide:
            shape = shape.with_config(model=dataclasses.replace(shape.model, compute_dtype="float64"))
        params = model.init(config.model, jax.random.key(config.init_seed))
        params = intervention.first_params(params, config.intervention.head_rank)
        params = jax.tree.map(lambda x: x.astype(jnp.float64 if wide else jnp.float32), params)
        h = optimizer.hyper(config, config.intervention.active if present is None else present)
        step = jax.jit(lambda state, tokens_BL: member_step(shape, state, h, tokens_BL))
        state, losses = init_member(params, config.optimizer), []
        for i in range(steps):
            state, metrics = step(state, tokens(i))
            losses.append(float(metrics.loss))
        return np.array(losses), jax.device_get(state.params)


def unembedding(params):
    return np.asarray(model.unembedding(params), np.float64)[:V]


def rank_percent(w_VD):
    return float(100 / D * effective_rank(singular_values(w_VD)))


def test_the_placebo_moves_raw_geometry_and_no_loss():
    losses, params = train(BASE, 100, wide=True)
    moved_losses, moved = train(arm(mean_row=10.0), 100, wide=True)
    np.testing.assert_allclose(moved_losses, losses, rtol=1e-9)
    assert losses[-10:].mean() < losses[0] - 0.3
    before, after = unembedding(params), unembedding(moved)
    assert rank_percent(before) - rank_percent(after) > 20
    fixed = [gauge_fix(w, MODEL.norm) for w in (before, after)]
    assert abs(rank_percent(fixed[0]) - rank_percent(fixed[1])) < 1e-3
    centred = after - after.mean(0)
    assert np.linalg.norm(after.mean(0)) == pytest.approx(10 * np.sqrt((centred**2).sum(1).mean()), rel=1e-4)


@pytest.mark.slow
def test_the_placebo_in_float32_keeps_the_first_losses():
    np.testing.assert_allclose(train(arm(mean_row=1.0), 20)[0], train(BASE, 20)[0], rtol=1e-5)


def test_centring_changes_no_loss_and_leaves_no_mean_row():
    losses, _ = train(BASE, 100, wide=True)
    centred_losses, params = train(arm(center_head=True), 100, wide=True)
    np.testing.assert_allclose(centred_losses, losses, rtol=1e-9)
    assert np.abs(unembedding(params).mean(0)).max() < 1e-12


def test_a_factored_head_has_no_more_than_its_rank():
    losses, params = train(arm(head_rank=5), 60)
    s = np.linalg.svd(unembedding(params), compute_uv=False)
    assert s[5] < 1e-6 * s[0] < s[4]
    assert losses[-10:].mean() < losses[0] - 0.2
    assert not params["unembedding_factor"][5:].any()


def test_a_factored_head_of_full_rank_without_training_its_factor_is_the_usual_head():
    factored = dataclasses.replace(BASE, model=dataclasses.replace(MODEL, factored_head=True))
    losses, params = train(factored, 30, present=("head_rank",))
    expected_losses, expected = train(BASE, 30)
    np.testing.assert_array_equal(losses, expected_losses)
    np.testing.assert_array_equal(params.pop("unembedding_factor"), np.eye(D))
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def gradients_of(config, params, rank=None):
    """Return the gradients of one batch in float64, by our step or, for a rank, projected by numpy."""
    x = jnp.asarray(tokens(0))
    architecture = dataclasses.replace(config.model, compute_dtype="float64")
    hidden = lambda params: model.hidden(architecture, params, x[:, :-1]).final_BLD  # noqa: E731
    final_BLD, pull = jax.vjp(hidden, params)
    read = lambda final_BLD, w_VD: loss.cross_entropy(final_BLD, w_VD, x[:, 1:]).objective  # noqa: E731
    dx_BLD, dw_VD = jax.grad(read, (0, 1))(final_BLD, params["unembedding"])
    right_rD = np.linalg.svd(np.asarray(params["unembedding"]))[2][:rank]
    (trunk,) = pull(dx_BLD @ right_rD.T @ right_rD)
    return trunk | {"unembedding": dw_VD}


def test_a_projected_gradient_reaches_the_trunk_and_the_head_is_exact():
    with jax.enable_x64(True):
        params = model.init(MODEL, jax.random.key(3))
        params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
        expected = gradients_of(BASE, params, 4)
        # With an Adam epsilon of this size, an update is a multiple of the gradient.
        plain = dataclasses.replace(
            BASE, optimizer=OptimizerConfig(eps=1e12, weight_decay=0.0, clip_norm=0.0, warmup_from=1.0)
        )
        config = arm(plain, backward_rank=4)
        shape = shape_of(config, "")
        shape = shape.with_config(model=dataclasses.replace(shape.model, compute_dtype="float64"))
        h = optimizer.hyper(config, ("backward_rank",))._replace(learning_rate=np.float64(1e12))
        after, _ = member_step(shape, init_member(params, config.optimizer), h, tokens(0))
        update = jax.tree.map(jnp.subtract, params, after.params)
        largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7 * largest), update, expected)


@pytest.mark.parametrize("subspace", ["leading", "random"])
def test_a_projected_update_moves_the_head_in_the_kept_dimensions_alone(subspace):
    first = train(BASE, 0, wide=True)[1]
    config = arm(update_rank=4, backward_subspace=subspace, head_decay=2.0)
    (losses, params), (_, plain) = train(config, 1, wide=True), train(arm(head_decay=2.0), 1, wide=True)
    np.testing.assert_array_equal(losses, train(BASE, 1, wide=True)[0])
    start, rate = np.asarray(first["unembedding"]), float(optimizer.learning_rate(optimizer.hyper(BASE), 1))
    kept_DD = np.linalg.svd(start)[2][:4].T @ np.linalg.svd(start)[2][:4]
    if subspace == "random":
        numbers = intervention.Intervention(update_rank=4, backward_subspace=1)
        kept_DD = np.asarray(intervention.projections(numbers, first).update_DD)
    decayed = start * (1 - 2.0 * rate)
    update = plain["unembedding"] - decayed
    largest = np.abs(update).max()
    np.testing.assert_allclose(params["unembedding"] - decayed, update @ kept_DD, atol=1e-7 * largest)
    assert np.linalg.norm(update @ kept_DD) < 0.9 * np.linalg.norm(update)
    for name in params.keys() - {"unembedding"}:
        jax.tree.map(np.testing.assert_array_equal, params[name], plain[name])


@pytest.mark.parametrize("numbers", [{"backward_rank": D}, {"update_rank": D}])
def test_a_projection_onto_all_dimensions_changes_nothing(numbers):
    losses, params = train(arm(**numbers), 20)
    expected_losses, expected = train(BASE, 20)
    np.testing.assert_array_equal(losses, expected_losses)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_the_random_subspace_is_a_fixed_projection():
    numbers = intervention.Intervention(backward_rank=3, backward_subspace=1)
    first, second = (
        np.asarray(
            intervention.projections(numbers, {"unembedding": jax.random.normal(jax.random.key(k), (V, D))}).backward_DD
        )
        for k in range(2)
    )
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first @ first, first, atol=1e-6)
    assert np.trace(first) == pytest.approx(3, abs=1e-5)


def test_the_polar_factor_is_that_of_the_singular_value_decomposition():
    w = np.random.default_rng(0).normal(size=(V, D)) * np.geomspace(1, 1e-3, D)
    u, _, vt = np.linalg.svd(w, full_matrices=False)
    np.testing.assert_allclose(intervention.polar_factor(jnp.asarray(w, jnp.float32)), u @ vt, atol=2e-3)
    with jax.enable_x64(True):
        np.testing.assert_allclose(intervention.polar_factor(jnp.asarray(w)), u @ vt, atol=1e-9)


def test_polar_decay_lowers_the_nuclear_norm_at_its_rate():
    config = arm(polar_decay=0.5)
    first = train(BASE, 0, wide=True)[1]["unembedding"]
    shrunk, plain = train(config, 1, wide=True)[1]["unembedding"], train(BASE, 1, wide=True)[1]["unembedding"]
    u, _, vt = np.linalg.svd(first, full_matrices=False)
    rate = float(optimizer.learning_rate(optimizer.hyper(config), 1))
    np.testing.assert_allclose(plain - shrunk, rate * 0.5 * u @ vt, atol=1e-9)


@pytest.mark.parametrize(
    "numbers",
    [
        {"rank_penalty": -0.7},
        {"penalty_metric": "unembedding/mean_cosine", "penalty_weight": 0.4},
        {"penalty_metric": "final_states/isoscore", "penalty_weight": 2.0},
    ],
)
def test_the_gradient_of_a_penalty_matches_finite_differences(numbers):
    config = arm(**numbers)
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        w, x = jnp.asarray(rng.normal(size=(48, D))), jnp.asarray(rng.normal(size=(B, L, D)))
        h = intervention.numbers_of(config, config.intervention.active)

        def added(w, x):
            return sum(intervention.penalties(h, config, w, x))

        dw, dx = jax.grad(added, (0, 1))(w, x)
        way_w, way_x = jnp.asarray(rng.normal(size=w.shape)), jnp.asarray(rng.normal(size=x.shape))
        slope = (added(w + 1e-5 * way_w, x + 1e-5 * way_x) - added(w - 1e-5 * way_w, x - 1e-5 * way_x)) / 2e-5
        assert float(slope) != 0
        assert float(jnp.vdot(dw, way_w) + jnp.vdot(dx, way_x)) == pytest.approx(float(slope), rel=1e-5)


def test_a_penalty_moves_the_rank_in_the_direction_of_its_sign():
    up, none, down = (
        rank_percent(gauge_fix(unembedding(train(arm(rank_penalty=weight), 60)[1]), MODEL.norm))
        for weight in (-1.0, 0.0, 1.0)
    )
    assert up > none + 1
    assert none > down + 1


def test_own_decay_and_rate_reach_the_unembedding_alone():
    start = model.init(MODEL, jax.random.key(0))
    plain, same = train(BASE, 1)[1], train(arm(head_decay=0.3), 1)[1]
    np.testing.assert_array_equal(same["unembedding"], plain["unembedding"])
    rate = float(optimizer.learning_rate(optimizer.hyper(BASE), 1))
    more, fast = train(arm(head_decay=5.3), 1)[1], train(arm(head_rate=3.0), 1)[1]
    frozen = train(arm(head_rate=0.0), 3)[1]
    first = np.asarray(start["unembedding"])
    np.testing.assert_allclose(more["unembedding"], plain["unembedding"] - rate * 5.0 * first, atol=1e-7)
    np.testing.assert_allclose(fast["unembedding"] - first, 3 * (plain["unembedding"] - first), atol=1e-7)
    np.testing.assert_array_equal(frozen["unembedding"], first)
    for changed in (more, fast):
        np.testing.assert_array_equal(changed["embedding"], plain["embedding"])


def test_a_member_without_an_intervention_trains_as_it_would_alone():
    losses, params = train(BASE, 20)
    every = tuple(name for name in intervention.KINDS if name not in ("head_rank", "penalty_weight"))
    beside_losses, beside = train(BASE, 20, present=every)
    np.testing.assert_allclose(beside_losses, losses, rtol=2e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), beside, params)


def test_a_stack_without_interventions_has_none_in_its_program():
    assert jax.tree.leaves(optimizer.hyper(BASE).intervention) == []
    assert intervention.kinds([BASE, arm(mean_row=1.0), arm(head_rate=2.0)]) == ("head_rate", "mean_row")


def test_a_folded_model_is_the_same_in_one_piece():
    config, params = arm(head_rank=5), train(arm(head_rank=5), 60)[1]
    whole_config, whole = model.folded(config.model, params)
    assert not whole_config.factored_head and "unembedding_factor" not in whole
    x = jnp.asarray(tokens(0))
    np.testing.assert_allclose(
        model.apply(config.model, params, x[:, :-1]).logits_BLV,
        model.apply(whole_config, whole, x[:, :-1]).logits_BLV,
        atol=1e-6,
    )
    assert model.folded(whole_config, whole) == (whole_config, whole)


def test_a_factored_head_is_exported_as_one_matrix(tmp_path):
    config, params = arm(head_rank=5).model, train(arm(head_rank=5), 60)[1]
    hf.export_checkpoint(config, params, tmp_path / "model")
    read_config, read = hf.import_checkpoint(tmp_path / "model")
    assert read_config == dataclasses.replace(config, factored_head=False)
    np.testing.assert_array_equal(read["unembedding"], model.unembedding(params))


def test_a_factored_head_costs_its_product_once_per_pass():
    config = dataclasses.replace(MODEL, factored_head=True)
    product = 2 * MODEL.padded_vocab_size * D**2
    assert flops.train_step(config, B, L) - flops.train_step(MODEL, B, L) == 3 * product
    assert parameter_count(config)[0] - parameter_count(MODEL)[0] == D**2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_rank": D + 1}, r"head_rank = 17: is more than config.model.d_model = 16"),
        ({"head_rank": -1}, r"head_rank = -1: needs a rank of 1 or more"),
        ({"backward_rank": 17}, r"backward_rank = 17: is more than"),
        ({"head_decay": -0.5}, r"head_decay = -0.5: needs a weight decay of 0 or more, or -1"),
        ({"center_head": True, "mean_row": 1.0}, r"center_head = True and .*mean_row = 1.0 contradict each other"),
        ({"head_rank": 4, "mean_row": 1.0}, r"contradict each other"),
        ({"head_rank": 4, "update_rank": 4}, r"head_rank = 4 and .*update_rank = 4 contradict each other"),
        ({"update_rank": 17}, r"update_rank = 17: is more than"),
        ({"penalty_weight": 1.0}, r"penalty_weight = 1.0: has no effect without"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        check(arm(**changes))


def check(config):
    config.intervention.check("config.intervention")
    config.check("config")


def test_interventions_that_do_not_fit_the_run_are_refused():
    tied = dataclasses.replace(BASE, model=dataclasses.replace(MODEL, tied=True))
    with pytest.raises(ConfigError, match=r"intervention.mean_row = 1.0: would change the embedding as well"):
        check(arm(tied, mean_row=1.0))
    check(arm(tied, backward_rank=4))
    with pytest.raises(ConfigError, match=r"intervention.head_rate = 2.0: changes training, and an imported run"):
        check(dataclasses.replace(arm(head_rate=2.0), imported="Llama"))
    squared = dataclasses.replace(BASE, optimizer=OptimizerConfig(z_loss=1e-4))
    with pytest.raises(ConfigError, match=r"is no placebo with config.optimizer.z_loss = 0.0001"):
        check(arm(squared, mean_row=1.0))


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("mean_cosine", "needs target/metric with one of the targets unembedding"),
        ("unembedding/effective_rnk", "effective_rank"),
        # It tries all metrics, to name those that have one.
        pytest.param("unembedding/points", "has no gradient", marks=pytest.mark.slow),
    ],
)
def test_a_penalty_needs_a_metric_with_a_gradient(metric, message):
    with pytest.raises(ConfigError, match=message):
        intervention.check_penalty(arm(penalty_metric=metric, penalty_weight=1.0))
