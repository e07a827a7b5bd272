"""Every model option, exported by every family, round-trips or is refused by name."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from olmo_jax import hf
from olmo_jax.config import ConfigError, ModelConfig
from olmo_jax.config.rope import RopeScaling
from olmo_jax.hf.layout import nested, our_shapes
from tests.olmo_jax.variants import FAMILIES
from tests.sweeps.planning.test_upgrades import add_field

ARCHITECTURES = {
    "olmo": "OlmoForCausalLM", "olmo2": "Olmo2ForCausalLM", "gpt_neox": "GPTNeoXForCausalLM",
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM", "olmo3": "Olmo3ForCausalLM", "smollm3": "SmolLM3ForCausalLM",
    "gpt2": "GPT2LMHeadModel", "gemma3": "Gemma3ForCausalLM",
}  # fmt: skip
BASES = {name: dataclasses.replace(config, n_layers=1) for name, config in FAMILIES.items()}
BASES["olmo2"] = dataclasses.replace(BASES["olmo2"], n_kv_heads=1)  # which divides every number of heads
_RMS = dataclasses.replace(BASES["olmo"], norm="rms_norm", clip_qkv=0.0)
_LAYERS = {"n_layers": 2, "attention_pattern": ("sliding", "full"), "window": 9}
BASES |= {
    "llama": _RMS,
    "mistral": dataclasses.replace(_RMS, attention_pattern=("sliding",), window=9),
    "qwen2": dataclasses.replace(_RMS, attention_bias=True, out_bias=False),
    "qwen3": dataclasses.replace(_RMS, qk_norm=True, qk_norm_by_head=True),
    "olmo3": dataclasses.replace(BASES["olmo2"], **_LAYERS),
    "smollm3": dataclasses.replace(_RMS, n_layers=2, attention_pattern=("unrotated", "full")),
    "gpt2": dataclasses.replace(
        BASES["gpt_neox"], mlp="gelu_tanh", positions="learned", parallel=False, rotary_fraction=1.0
    ),
    "gemma3": dataclasses.replace(
        _RMS, norm_at="both", norm_plus_one=True, qk_norm=True, qk_norm_by_head=True, mlp="geglu", **_LAYERS,
        scaled_embedding=True, head_width=12, score_width=20.0, tied=True, sliding_rope_theta=50.0,
    ),
}  # fmt: skip

# Families that between them have every option; the others are tried by `make slow`.
QUICK = ("olmo", "olmo2", "gpt_neox", "gemma3", "gpt2")

# Two valid values of each option; each family is tested with the one that its base model lacks.
VALUES = {
    "vocab_size": (61, 50), "pad_vocab_to": (8, 16), "d_model": (32, 64), "n_layers": (2, 3), "n_heads": (4, 2),
    "d_ff": (48, 40), "rope_theta": (10000.0, 777.0), "norm_eps": (1e-5, 1e-3), "init_std": (0.02, 0.03),
    "compute_dtype": ("float32", "bfloat16"), "n_kv_heads": (0, 1), "context_length": (80, 96),
    "norm": ("rms_norm", "affine_layer_norm"), "norm_at": ("before", "after"), "qk_norm": (False, True),
    "clip_qkv": (0.0, 0.25), "parallel": (False, True), "mlp": ("swiglu", "gelu"), "attention_bias": (False, True),
    "mlp_bias": (False, True), "positions": ("rotary", "learned"), "rotary_fraction": (1.0, 0.5),
    "tied": (False, True), "dropout": (0.0, 0.1), "head_width": (0, 16), "qk_norm_by_head": (False, True),
    "out_bias": (True, False), "norm_plus_one": (False, True), "scaled_embedding": (False, True),
    "score_width": (0.0, 20.0), "scaled_init": (True, False),
    "attention_pattern": (("sliding", "full"), ("full", "sliding")), "window": (9, 12),
    "sliding_rope_theta": (50.0, 60.0), "rope_scaling": (RopeScaling(), RopeScaling("linear", 2.0)),
}  # fmt: skip
# Options that mean something only together with others.
TOGETHER = {
    "qk_norm_by_head": {"qk_norm": True}, "norm_plus_one": {"norm": "rms_norm"},
    "attention_pattern": {"n_layers": 2, "window": 9}, "window": {"attention_pattern": ("sliding",)},
    "sliding_rope_theta": {"attention_pattern": ("sliding",), "window": 9},
    "out_bias": {"attention_bias": True}, "qk_norm": {"qk_norm_by_head": False},
}  # fmt: skip


def changed(name, option):
    base = BASES[name]
    value = next(value for value in VALUES[option] if value != getattr(base, option))
    config = dataclasses.replace(base, **TOGETHER.get(option, {}) | {option: value})
    return dataclasses.replace(config, rope_scaling=RopeScaling()) if config.positions == "learned" else config


REFUSED = {
    "olmo": "norm_eps norm norm_at qk_norm parallel mlp mlp_bias positions rotary_fraction head_width "
    "qk_norm_by_head out_bias norm_plus_one scaled_embedding score_width attention_pattern window "
    "sliding_rope_theta rope_scaling",
    "olmo2": "norm norm_at qk_norm clip_qkv parallel mlp mlp_bias positions rotary_fraction head_width "
    "qk_norm_by_head out_bias norm_plus_one scaled_embedding score_width",
    "gpt_neox": "n_kv_heads norm norm_at qk_norm clip_qkv mlp mlp_bias positions head_width qk_norm_by_head out_bias "
    "norm_plus_one scaled_embedding score_width attention_pattern window sliding_rope_theta rope_scaling",
    "llama": "norm norm_at qk_norm clip_qkv parallel mlp positions rotary_fraction norm_plus_one scaled_embedding "
    "score_width attention_pattern sliding_rope_theta",
    "mistral": "norm norm_at qk_norm clip_qkv parallel mlp attention_bias mlp_bias positions rotary_fraction "
    "norm_plus_one scaled_embedding score_width attention_pattern sliding_rope_theta",
    "qwen2": "norm norm_at qk_norm clip_qkv parallel mlp mlp_bias positions rotary_fraction head_width "
    "qk_norm_by_head norm_plus_one scaled_embedding score_width sliding_rope_theta",
    "qwen3": "norm norm_at clip_qkv parallel mlp mlp_bias positions rotary_fraction qk_norm_by_head out_bias "
    "norm_plus_one scaled_embedding score_width sliding_rope_theta",
    "olmo3": "norm norm_at qk_norm clip_qkv parallel mlp mlp_bias positions rotary_fraction head_width "
    "qk_norm_by_head out_bias norm_plus_one scaled_embedding score_width",
    "smollm3": "norm norm_at qk_norm clip_qkv parallel mlp positions rotary_fraction qk_norm_by_head out_bias "
    "norm_plus_one scaled_embedding score_width attention_pattern sliding_rope_theta",
    "gpt2": "rope_theta n_kv_heads norm norm_at qk_norm clip_qkv parallel mlp attention_bias mlp_bias positions "
    "rotary_fraction head_width qk_norm_by_head out_bias norm_plus_one scaled_embedding score_width "
    "attention_pattern window sliding_rope_theta",
    "gemma3": "norm norm_at qk_norm clip_qkv parallel mlp mlp_bias positions rotary_fraction qk_norm_by_head "
    "out_bias norm_plus_one scaled_embedding",
}
# Options with which a model is, or is closest to, one of another family.
ELSEWHERE = {
    ("olmo2", "olmo3"): "attention_pattern window sliding_rope_theta rope_scaling",
    ("llama", "qwen3"): "qk_norm_by_head",
    ("llama", "qwen2"): "out_bias",
    ("llama", "mistral"): "window attention_pattern sliding_rope_theta",
    ("mistral", "qwen3"): "qk_norm_by_head",
    ("mistral", "qwen2"): "out_bias",
    ("qwen2", "llama"): "attention_bias out_bias mlp_bias head_width",
    ("qwen3", "llama"): "qk_norm",
    ("smollm3", "mistral"): "window attention_pattern sliding_rope_theta",
    ("llama", "olmo"): "norm clip_qkv",
    ("llama", "olmo2"): "norm_at qk_norm",
    ("qwen2", "qwen3"): "qk_norm_by_head",
    ("qwen3", "olmo2"): "norm_at qk_norm_by_head",
    ("olmo3", "qwen3"): "norm_at qk_norm_by_head",
    ("smollm3", "llama"): "positions",
    ("smollm3", "qwen3"): "qk_norm_by_head",
    ("smollm3", "qwen2"): "out_bias",
    ("gpt2", "gpt_neox"): "positions",
}


def random_parameters(config):
    rng = np.random.default_rng(0)
    return nested({path: rng.normal(size=shape).astype(np.float32) for path, shape in our_shapes(config).items()})


def assert_refused(config, architecture, difference, folder):
    with pytest.raises(ConfigError) as raised:
        hf.export_checkpoint(config, {}, folder)  # before it looks at any parameter
    message = str(raised.value)
    assert f"from the closest, {architecture}, it differs in {difference}" in message
    assert "train it with the architecture's values" in message
    assert "\n" not in message
    assert not folder.exists()


def test_the_cases_cover_every_model_option():
    # A head of two factors is exported as their product, see test_intervention.py.
    assert set(VALUES) | {"factored_head"} == {field.name for field in dataclasses.fields(ModelConfig)}


@pytest.mark.parametrize("option", VALUES)
@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in BASES])
def test_every_option_round_trips_or_is_refused_by_name(name, option, tmp_path):
    config = changed(name, option)
    config.check("config.model")
    family = next((to for (base, to), options in ELSEWHERE.items() if base == name and option in options.split()), name)
    if option in REFUSED[name].split():
        difference = "" if family != name or option in TOGETHER else f"{option} = {getattr(config, option)!r} (not "
        assert_refused(config, ARCHITECTURES[family], difference, tmp_path / "out")
        return
    params = random_parameters(config)
    assert hf.export_checkpoint(config, params, tmp_path / "out") == ARCHITECTURES[family]
    again, params_again = hf.import_checkpoint(tmp_path / "out")
    assert again == (config if config.attention_bias else dataclasses.replace(config, out_bias=True))
    jax.tree.map(np.testing.assert_array_equal, params_again, params)


@pytest.mark.parametrize("name", BASES)
def test_equal_key_and_query_heads_are_one_model_in_either_notation(name, tmp_path):
    config = dataclasses.replace(BASES[name], n_kv_heads=BASES[name].n_heads)
    hf.export_checkpoint(config, random_parameters(config), tmp_path)
    assert hf.import_checkpoint(tmp_path)[0] == dataclasses.replace(config, n_kv_heads=0)


@pytest.mark.parametrize("name", BASES)
def test_an_option_unknown_to_families_is_refused_unless_neutral(name, tmp_path, monkeypatch):
    add_field(monkeypatch, ModelConfig, "new_option", 0.5)
    default = ModelConfig(**{key: getattr(BASES[name], key) for key in VALUES})
    params = random_parameters(default)
    hf.export_checkpoint(default, params, tmp_path / "default")
    assert hf.import_checkpoint(tmp_path / "default")[0] == default
    changed = dataclasses.replace(default, new_option=0.25)
    assert_refused(changed, ARCHITECTURES[name], "new_option = 0.25 (not 0.5)", tmp_path / "changed")


def test_a_non_neutral_default_is_refused_on_export_and_reset_on_import(tmp_path, monkeypatch):
    """Published models were made without the option, so importing sets its neutral value instead of our default."""
    add_field(monkeypatch, ModelConfig, "new_option", 0.5, neutral=0.0)
    default = ModelConfig(**{key: getattr(BASES["olmo"], key) for key in VALUES})
    assert_refused(default, ARCHITECTURES["olmo"], "new_option = 0.5 (not 0.0)", tmp_path / "default")
    without = dataclasses.replace(default, new_option=0.0)
    hf.export_checkpoint(without, random_parameters(without), tmp_path / "without")
    assert hf.import_checkpoint(tmp_path / "without")[0] == without


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"compute_dtype": "float8"}, ["compute_dtype = 'float8'", "float32, bfloat16"]),
        ({"dropout": "much"}, ["dropout = 'much'", "type float"]),
        ({"new_option": 0.25}, ["olmo_jax has no key 'new_option'", "later version"]),
        ({"vocab_size": 0}, ["olmo_jax = ", "1 to 64"]),
    ],
)
def test_an_unknown_setting_in_our_config_section_is_refused(change, words, tmp_path):
    hf.export_checkpoint(BASES["olmo"], random_parameters(BASES["olmo"]), tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["olmo_jax"] |= change
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError) as raised:
        hf.import_checkpoint(tmp_path)
    assert all(word in str(raised.value) for word in [str(tmp_path / "config.json"), *words]), raised.value


@pytest.mark.parametrize("changes", [{}, {"compute_dtype": "bfloat16"}, {"compute_dtype": "bfloat16", "dropout": 0.1}])
def test_export_reports_options_without_a_transformers_setting(changes, tmp_path, capsys):
    config = dataclasses.replace(BASES["olmo"], **changes)
    hf.export_checkpoint(config, random_parameters(config), tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["olmo_jax"] == {"vocab_size": 61, "pad_vocab_to": 8} | changes
    listed = ", ".join(f"{name} = {value!r}" for name, value in changes.items())
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == bool(changes)
    assert all(f"transformers has no setting for {listed} and ignores it" in line for line in lines)
