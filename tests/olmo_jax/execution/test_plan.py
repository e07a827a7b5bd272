"""Execution plans give equal numbers within rounding, and are chosen by backend and size or refused."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

from olmo_jax import loss, model
from olmo_jax.config import ConfigError, ModelConfig
from olmo_jax.execution import flops
from olmo_jax.execution import plan as execution_plan
from olmo_jax.execution.plan import ComputeConfig, ExecutionPlan
from tests.olmo_jax.variants import VARIANTS
from tests.plain import plain

SMALL = ModelConfig(vocab_size=60, pad_vocab_to=8, d_model=16, n_layers=3, n_heads=2, d_ff=32)
TOKENS_BL = np.random.default_rng(0).integers(0, 60, (2, 21))


def loss_and_gradient(config, params, how, dropout_key=None):
    def objective(params):
        final_BLD = model.hidden(config, params, TOKENS_BL[:, :-1], dropout_key=dropout_key, compute=how).final_BLD
        return loss.cross_entropy(final_BLD, model.unembedding(params), TOKENS_BL[:, 1:]).objective

    return jax.jit(jax.value_and_grad(objective))(params)


PLANS = [
    *(
        (name, ExecutionPlan("blocked", layers="scanned", remat=True))
        for name in ("olmo", "olmo2", "learned positions", "gemma3", "unrotated blocks")
    ),
    ("olmo2", ExecutionPlan("blocked")),
    ("all at once", ExecutionPlan("dense", remat=True)),
    ("gpt_neox", ExecutionPlan("dense", gathered=True)),
]


@pytest.mark.parametrize(("name", "how"), plain(PLANS, PLANS[1], PLANS[3], PLANS[-1], unpack=True))
def test_every_execution_plan_gives_the_same_loss_and_gradient(name, how):
    config = dataclasses.replace(VARIANTS[name], vocab_size=60)
    params = model.init(config, jax.random.key(0))
    key = jax.random.key(1) if config.dropout else None
    expected, gradient = loss_and_gradient(config, params, ExecutionPlan("dense"), key)
    got, ours = loss_and_gradient(config, params, how, key)
    assert float(got) == pytest.approx(float(expected), rel=1e-6)
    largest = max(float(abs(x).max()) for x in jax.tree.leaves(gradient))
    chex.assert_trees_all_close(ours, gradient, rtol=1e-4, atol=1e-5 * largest)


def test_blocks_that_attend_differently_are_unrolled():
    deep = dataclasses.replace(VARIANTS["gemma3"], n_layers=40)
    assert execution_plan.forward(deep).layers == "unrolled"
    assert execution_plan.forward(dataclasses.replace(SMALL, n_layers=40)).layers == "scanned"
    with pytest.raises(ConfigError, match=r"config\.compute\.layers = 'scanned': needs blocks of one kind"):
        execution_plan.for_training(ComputeConfig(layers="scanned"), deep, 4, 16, "map", 1, "cpu")


def test_scanned_layers_report_each_layers_states():
    params = model.init(SMALL, jax.random.key(0))
    unrolled = model.hidden(SMALL, params, TOKENS_BL, layers=True, compute=ExecutionPlan("dense"))
    scanned = model.hidden(SMALL, params, TOKENS_BL, layers=True, compute=ExecutionPlan("dense", layers="scanned"))
    assert len(scanned.layers) == 3
    chex.assert_trees_all_close(scanned, unrolled, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_rematerialisation_reduces_memory():
    config = dataclasses.replace(SMALL, n_layers=8, d_ff=512)
    params = model.init(config, jax.random.key(0))

    def temporaries(how):
        def objective(params):
            return model.hidden(config, params, np.zeros((8, 64), np.int32), compute=how).final_BLD.sum()

        return jax.jit(jax.grad(objective)).lower(params).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(ExecutionPlan("dense", "scanned", remat=True)) < 0.6 * temporaries(
        ExecutionPlan("dense", "scanned")
    )


AUTO = ComputeConfig()


def decided(config=AUTO, model_config=SMALL, mapping="auto", members=4, backend="cpu", batch=8):
    return execution_plan.for_training(config, model_config, batch, 32, mapping, members, backend)


def test_automatic_plans_depend_on_backend_depth_and_size():
    assert decided()[:3] == ("blocked", "unrolled", False)
    assert decided().mapping == "map"
    assert decided(backend="gpu").mapping == "vmap"
    assert decided(backend="gpu").members == 4
    assert decided(backend="gpu").attention == "dense"  # float32
    half = dataclasses.replace(SMALL, compute_dtype="bfloat16")
    assert decided(model_config=half, backend="gpu").attention == "cudnn"
    assert decided(model_config=half, backend="tpu").attention == "dense"
    assert decided(model_config=dataclasses.replace(SMALL, n_layers=32)).layers == "scanned"
    assert decided().steps_per_call == 32
    large = dataclasses.replace(SMALL, d_model=512, d_ff=4096, n_layers=12)
    assert decided(model_config=large).steps_per_call < 10
    assert decided(ComputeConfig(steps_per_call=100), large).steps_per_call == 100


def test_options_unsupported_by_a_backend_are_refused_with_alternatives():
    cudnn = ComputeConfig(attention="cudnn")
    with pytest.raises(
        ConfigError, match=r"attention = 'cudnn': needs an NVIDIA GPU.*'cpu'.*supports dense and blocked"
    ):
        decided(cudnn)
    with pytest.raises(ConfigError, match="compute_dtype = 'bfloat16', not 'float32'"):
        decided(cudnn, backend="gpu")
    wide = dataclasses.replace(SMALL, compute_dtype="bfloat16", d_model=512, n_heads=2)
    with pytest.raises(ConfigError, match="up to 128, not 256"):
        decided(cudnn, wide, backend="gpu")
    with pytest.raises(ConfigError, match=r"microbatches = 3: doesn't divide config.data.batch_size = 8"):
        decided(ComputeConfig(microbatches=3))
    for field, value in (("attention", "flash"), ("layers", "rolled"), ("steps_per_call", -1), ("microbatches", -2)):
        with pytest.raises(ConfigError, match=f"c.{field} = {value!r}"):
            ComputeConfig(**{field: value}).check("c")


def test_the_plan_is_described_in_words():
    text = str(decided(ComputeConfig(microbatches=2, remat=True, steps_per_call=3)))
    assert text == (
        "members by map, blocked attention, unrolled layers, recomputed for the gradient, 2 microbatches, "
        "3 step(s) per call"
    )


def test_the_plan_round_trips_through_its_record():
    chosen = ExecutionPlan("blocked", microbatches=2, mapping="map")
    assert ExecutionPlan.from_record(chosen._asdict()) == chosen
    assert ExecutionPlan.from_record({"attention": "dense"}) == ExecutionPlan("dense")


@pytest.mark.parametrize(
    "damage",
    [{"attention": "x"}, {"remat": 1}, {"members": 0}, {"steps_per_call": 1.0}, {"mapping": None}, {"unknown": 1}],
)
def test_a_damaged_plan_record_reads_as_none(damage):
    assert ExecutionPlan.from_record(ExecutionPlan("dense")._asdict() | damage) is None
    assert ExecutionPlan.from_record([damage]) is None


def test_last_position_only_works_with_every_execution_plan():
    config = dataclasses.replace(SMALL, n_layers=2)
    params = model.init(config, jax.random.key(0))
    expected = model.hidden(config, params, TOKENS_BL).final_BLD[:, -1:]
    for layers in ("unrolled", "scanned"):
        for remat in (False, True):
            how = ExecutionPlan("dense", layers, remat)
            results = model.hidden(config, params, TOKENS_BL, compute=how, last=True).final_BLD
            np.testing.assert_allclose(results, expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["olmo2", "gpt_neox", "learned positions", "gemma3"])
def test_last_position_only_matches_all_positions_and_the_flops_formula(name):
    config = dataclasses.replace(VARIANTS[name], d_model=256, n_kv_heads=0, d_ff=1024, vocab_size=512, dropout=0.0)
    batch, length = 3, 16
    params = model.init(config, jax.random.key(0))
    tokens_BL = np.random.default_rng(0).integers(0, config.vocab_size, (batch, length))
    how = execution_plan.ExecutionPlan("dense")
    whole = model.hidden(config, params, tokens_BL, compute=how)
    last = model.hidden(config, params, tokens_BL, compute=how, last=True)
    np.testing.assert_allclose(last.final_BLD, whole.final_BLD[:, -1:], atol=2e-6)

    def objective(params, tokens_BL, last):
        final_BLD = model.hidden(config, params, tokens_BL, compute=how, last=last).final_BLD
        return jax.nn.logsumexp(model.unembed(final_BLD, model.unembedding(params))[:, -1], axis=-1).sum()

    gradient = jax.jit(jax.grad(objective), static_argnums=2)
    gradients = [gradient(params, tokens_BL, last) for last in (False, True)]
    chex.assert_trees_all_close(*gradients, rtol=1e-4, atol=1e-6)
    counted = jax.jit(objective, static_argnums=2).lower(params, tokens_BL, True).compile().cost_analysis()["flops"]
    by_formula = flops.forward(config, batch, length, length**2, last=True)
    assert by_formula == pytest.approx(counted, rel=0.06)
    assert by_formula < 0.8 * flops.forward(config, batch, length, length**2)


@pytest.mark.parametrize("name", ["olmo2", "gpt_neox", "all at once", "gemma3"])
def test_flops_by_formula_match_the_count_of_xla(name):
    """Within 5 %, with attention in full as the dense form computes it; XLA counts element-wise work too."""
    config = dataclasses.replace(
        VARIANTS[name], d_model=256, n_heads=4, n_kv_heads=0, d_ff=1024, vocab_size=4096, dropout=0.0
    )
    batch, length = 2, 64
    params = jax.eval_shape(lambda: model.init(config, jax.random.key(0)))

    def objective(params, tokens_BL):
        logits_BLV = model.apply(config, params, tokens_BL).logits_BLV
        return jax.nn.logsumexp(logits_BLV, axis=-1).sum()

    tokens = jax.ShapeDtypeStruct((batch, length), np.int32)
    counted = jax.jit(jax.grad(objective)).lower(params, tokens).compile().cost_analysis()["flops"]
    pairs = length**2
    assert flops.train_step(config, batch, length, pairs) == pytest.approx(counted, rel=0.05)
    forward = jax.jit(objective).lower(params, tokens).compile().cost_analysis()["flops"]
    assert flops.forward(config, batch, length, pairs) == pytest.approx(forward, rel=0.05)
