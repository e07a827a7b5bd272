"""Presets against the parameter counts given by their publishers."""

import dataclasses
import functools
import importlib

import jax
import pytest

from geometry.norms import NORMS
from olmo_jax import model
from olmo_jax.config import ModelConfig, TrainConfig, from_config_dict
from olmo_jax.config.presets import OLMO, OLMO2, PUBLIC_OLMO, PYTHIA, STAND_INS
from olmo_jax.config.validation import ConfigError

# Total and non-embedding counts, from the table of the Pythia suite and the safetensors of the released models.
PUBLISHED = {
    "pythia 14m": (14_067_712, 1_189_888),
    "pythia 31m": (30_494_720, 4_739_072),
    "pythia 70m": (70_426_624, 18_915_328),
    "pythia 160m": (162_322_944, 85_056_000),
    "olmo 1b": (1_176_764_416, 1_073_741_824),
    "olmo2 1b": (1_484_916_736, 1_073_874_944),
}
PRESETS = {f"{family} {size}": config for family, of in (("olmo", OLMO), ("olmo2", OLMO2), ("pythia", PYTHIA))
           for size, config in of.items()}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_match_the_published_ones(name):
    assert model.parameter_count(PRESETS[name]) == PUBLISHED[name]


SMALL = ModelConfig(vocab_size=100, pad_vocab_to=16, d_model=24, n_layers=2, n_heads=4, d_ff=40, context_length=9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mlp": "gelu", "positions": "learned", "parallel": True},
        {"attention_bias": True, "mlp_bias": True},
        {"n_kv_heads": 2, "attention_bias": True, "qk_norm": True, "tied": True},
        {"mlp": "gelu", "mlp_bias": True, "norm_at": "after", "positions": "learned", "tied": True},
        {
            "mlp": "geglu",
            "norm_at": "both",
            "qk_norm": True,
            "qk_norm_by_head": True,
            "head_width": 12,
            "n_kv_heads": 2,
        },
        {"mlp": "gelu_tanh", "attention_bias": True, "out_bias": False, "head_width": 6},
    ],
)
def test_parameter_counts_match_initialised_models(options, norm):
    config = dataclasses.replace(SMALL, norm=norm, **options)
    shapes = jax.eval_shape(functools.partial(model.init, config), jax.random.key(0))
    sizes = {name: sum(x.size for x in jax.tree.leaves(of)) for name, of in shapes.items()}
    outside = sum(sizes.get(name, 0) for name in ("embedding", "positions", "unembedding"))
    assert model.parameter_count(config) == (sum(sizes.values()), sum(sizes.values()) - outside)


@pytest.mark.parametrize("name", [n for n in PRESETS if n not in PUBLISHED and "sequential" not in n])
def test_other_presets_have_the_size_in_their_name(name):
    """OLMo's public presets and OLMo-core's ladder count one of the two embeddings, our small presets none."""
    config = PRESETS[name]
    family, size = name.split()
    total, inner = model.parameter_count(config)
    embedding = config.padded_vocab_size * config.d_model
    assert total == inner + 2 * embedding
    counted = inner if family == "olmo" and size in STAND_INS else inner + embedding
    assert counted == pytest.approx(float(size[:-1]) * 1e6, rel=0.07)


@pytest.mark.parametrize("size", ["14m", "31m", "70m", "160m"])
def test_a_pythia_and_its_sequential_twin_differ_in_one_field_and_nothing_else(size):
    parallel, sequential = dataclasses.asdict(PYTHIA[size]), dataclasses.asdict(PYTHIA[f"{size}-sequential"])
    assert {k for k in parallel if parallel[k] != sequential[k]} == {"parallel"}
    if size == "14m":
        small = {"vocab_size": 300, "d_model": 32, "d_ff": 128, "n_layers": 2}
        twins = [dataclasses.replace(PYTHIA[name], **small) for name in (size, f"{size}-sequential")]
        trees = [model.init(config, jax.random.key(3)) for config in twins]
        assert jax.tree.structure(trees[0]) == jax.tree.structure(trees[1])
        assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), *trees)))


@pytest.mark.parametrize(("file", "sizes"), [("olmo", OLMO), ("olmo2", OLMO2), ("pythia", PYTHIA)])
def test_every_preset_has_a_valid_run_configuration(file, sizes):
    get_config = importlib.import_module(f"olmo_jax.configs.{file}").get_config
    for size in sizes:
        config = from_config_dict(TrainConfig, get_config(size))
        if size in PUBLIC_OLMO or file != "olmo":
            assert config.model == sizes[size]
        assert config.name == f"{file}-{size}"
    with pytest.raises(ConfigError, match=f"{file}.py has no size '5x'; sizes: "):
        get_config("5x")
