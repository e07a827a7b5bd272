"""Import and export of folders in the format of transformers, against stored logits (tests/oracles/models.py)."""

import base64
import json
import pathlib
import pickle
import shutil

import jax
import numpy as np
import pytest
import yaml
from etils import epath
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from olmo_jax import hf, loss, model
from olmo_jax.config import ConfigError
from olmo_jax.config.model import parameter_count
from olmo_jax.config.presets import OLMO, OLMO2, PYTHIA
from olmo_jax.data.tokenizer import train_bpe
from olmo_jax.hf.settings import eos_of, read_config
from olmo_jax.weights import WeightsError
from tests.plain import plain

PUBLISHED = pathlib.Path(__file__).parent / "published_configs.json"
STORED = pathlib.Path(__file__).parent / "stored"
NAMES = (
    "olmo", "olmo2", "olmo2_tied", "gpt_neox", "gpt_neox_sequential", "llama", "mistral", "qwen2", "qwen3", "olmo3",
    "smollm3", "gpt2", "gemma3",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A copy of the stored OLMo that a test may change."""
    return pathlib.Path(shutil.copytree(STORED / "olmo", tmp_path / "olmo"))


def edit(folder, **changes):
    """Changes config.json; None takes a key out."""
    settings = json.loads((folder / "config.json").read_text())
    settings = {k: v for k, v in (settings | changes).items() if v is not None}
    (folder / "config.json").write_text(json.dumps(settings))


def rewrite(folder, change):
    """Changes the tensors of model.safetensors, a dict."""
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# `make oracles` compares all families with more inputs.
@pytest.mark.parametrize("name", plain(NAMES, "olmo2", "gpt_neox", "gemma3"))
def test_logits_loss_and_gradient_match_transformers(name, tmp_path):
    expected = load_file(STORED / f"{name}.safetensors")
    config, params = hf.import_checkpoint(STORED / name)
    tokens = expected["tokens"]
    gradients = {n.removeprefix("gradient/"): g for n, g in expected.items() if n.startswith("gradient/")}
    shutil.copytree(STORED / name, tmp_path / "gradient")
    save_file(gradients, tmp_path / "gradient" / "model.safetensors")
    _, theirs = hf.import_checkpoint(tmp_path / "gradient")

    def objective(params):
        logits_BLV, hidden = model.apply(config, params, tokens)
        final_BLD = hidden.final_BLD[:, :-1]
        return loss.cross_entropy(final_BLD, model.unembedding(params), tokens[:, 1:]).objective, logits_BLV

    gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (value, logits), ours = gradient(jax.tree.map(jax.numpy.asarray, params))
    np.testing.assert_allclose(logits, expected["logits"], atol=2e-4 * np.ptp(expected["logits"]))
    assert float(value) == pytest.approx(float(expected["loss"][0]), rel=1e-4)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(theirs))
    # The gradient of a bias of keys that aren't rotated is 0, and what is there is rounding.
    floor = 1e-6 * largest
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=max(1e-4 * np.abs(b).max(), floor)), ours, theirs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shard_bytes", [5e9, 5e3])
def test_a_round_trip_keeps_settings_and_every_bit(name, shard_bytes, tmp_path):
    config, params = hf.import_checkpoint(STORED / name)
    hf.export_checkpoint(config, params, tmp_path / "out", shard_bytes=shard_bytes)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert (len(files) > 1) == (shard_bytes < 5e9)
    assert all(file.stat().st_size < shard_bytes + 4096 for file in files)
    tensors = {k: v for file in files for k, v in load_file(file).items()}
    theirs = load_file(STORED / name / "model.safetensors")
    assert tensors.keys() == theirs.keys()
    assert_equal(tensors, theirs)
    again, params_again = hf.import_checkpoint(tmp_path / "out")
    assert again == config
    assert_equal(params_again, params)


@pytest.mark.parametrize("preset", [OLMO["4m"], OLMO["1b"], OLMO2["14m"], PYTHIA["14m"], PYTHIA["14m-sequential"]])
def test_every_preset_round_trips_through_hugging_face(preset, tmp_path, vary):
    small = {"vocab_size": 200, "d_model": 32, "n_layers": 1, "n_heads": 4, "d_ff": 48, "context_length": 64}
    config = vary(preset, small)
    params = model.init(config, jax.random.key(0))
    hf.export_checkpoint(config, params, tmp_path)  # an empty folder is as good as none
    again, params_again = hf.import_checkpoint(tmp_path)
    assert again == config  # including padding rows, which only our config key records
    assert_equal(params_again, params)


def test_bfloat16_export_rounds_once(tmp_path):
    config, params = hf.import_checkpoint(STORED / "olmo2")
    hf.export_checkpoint(config, params, tmp_path / "half", dtype="bfloat16")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    _, half = hf.import_checkpoint(tmp_path / "half")
    assert_equal(half, jax.tree.map(lambda x: x.astype(jax.numpy.bfloat16).astype(np.float32), params))
    assert (tmp_path / "half" / "model.safetensors").stat().st_size < 0.7 * (
        STORED / "olmo2" / "model.safetensors"
    ).stat().st_size


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gpt2"])
def test_the_rope_settings_of_transformers_4_are_read_too(name, tmp_path):
    folder = pathlib.Path(shutil.copytree(STORED / name, tmp_path / name))
    rope = json.loads((folder / "config.json").read_text())["rope_parameters"]
    sliding, rope = rope.get("sliding_attention", {}), rope.get("full_attention", rope)
    theta, pct = ("rotary_emb_base", "rotary_pct") if name.startswith("gpt") else ("rope_theta", "unused")
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
    edit(
        folder, rope_parameters=None, rope_scaling=None if rope["rope_type"] == "default" else scaling,
        rope_local_base_freq=sliding.get("rope_theta"),
        **{theta: rope["rope_theta"], pct: rope.get("partial_rotary_factor")},
    )  # fmt: skip
    assert hf.import_checkpoint(folder)[0] == hf.import_checkpoint(STORED / name)[0]
    kind = "linear" if name.startswith(("olmo", "gpt")) and name != "olmo3" else "longrope"
    edit(folder, rope_scaling={"type": kind, "factor": 2.0})
    with pytest.raises(ConfigError, match=rf"config\.json: rope_type = '{kind}'"):
        hf.import_checkpoint(folder)


def test_settings_of_published_models_match_the_presets(tmp_path, vary):
    """The relevant settings of their config.json files, in the terms of transformers 4."""
    shared = {"attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": True, "rope_scaling": None}
    pythia = shared | {
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "bos_token_id": 0, "eos_token_id": 0,
        "classifier_dropout": 0.1, "hidden_act": "gelu", "hidden_dropout": 0.0, "hidden_size": 128,
        "intermediate_size": 512, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "num_attention_heads": 4,
        "num_hidden_layers": 6, "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False,
        "torch_dtype": "float16", "use_parallel_residual": True, "vocab_size": 50304,
    }  # fmt: skip
    olmo = shared | {
        "architectures": ["OlmoForCausalLM"], "model_type": "olmo", "attention_bias": False, "clip_qkv": None,
        "eos_token_id": 50279, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192,
        "max_position_embeddings": 2048, "num_attention_heads": 16, "num_hidden_layers": 16, "num_key_value_heads": 16,
        "pad_token_id": 1, "rope_theta": 10000.0, "tie_word_embeddings": True, "vocab_size": 50304,
    }  # fmt: skip
    olmo2 = olmo | {
        "architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "eos_token_id": 100257, "rms_norm_eps": 1e-06,
        "max_position_embeddings": 4096, "pad_token_id": 100277, "rope_theta": 500000, "tie_word_embeddings": False,
        "vocab_size": 100352,
    }  # fmt: skip
    del olmo2["clip_qkv"]
    for settings, preset in ((pythia, PYTHIA["14m"]), (olmo, OLMO["1b"]), (olmo2, OLMO2["1b"])):
        (tmp_path / "config.json").write_text(json.dumps(settings))
        _, config = read_config(epath.Path(tmp_path))
        assert config == vary(preset, {"vocab_size": preset.padded_vocab_size, "pad_vocab_to": 1})


@pytest.mark.parametrize("name", json.loads(PUBLISHED.read_text()))
def test_published_configurations_are_read(name, tmp_path):
    """As on the Hub, from memory of their format, with the published number of parameters where that is known."""
    published = json.loads(PUBLISHED.read_text())[name]
    (tmp_path / "config.json").write_text(json.dumps(published["settings"]))
    _, config = read_config(epath.Path(tmp_path))
    assert published["parameters"] in (parameter_count(config)[0], None)


@pytest.mark.parametrize("name", ["olmo", "olmo2", "llama"])
def test_a_sliding_window_shorter_than_the_context_is_refused_where_a_family_has_none(name, tmp_path):
    folder = pathlib.Path(shutil.copytree(STORED / name, tmp_path / name))
    edit(folder, sliding_window=512)
    assert hf.import_checkpoint(folder)[0].window == 0
    edit(folder, sliding_window=511)
    with pytest.raises(ConfigError, match=r"sliding_window = 511: is less than max_position_embeddings = 512"):
        hf.import_checkpoint(folder)


def test_older_neox_files_with_masks_and_another_head_name_are_read(tmp_path):
    folder = pathlib.Path(shutil.copytree(STORED / "gpt_neox", tmp_path / "neox"))

    def older(tensors):
        masks = {f"gpt_neox.layers.{i}.attention.bias": np.ones((1, 1, 8, 8), bool) for i in range(2)}
        buffers = {"gpt_neox.layers.0.attention.rotary_emb.inv_freq": np.ones(4, np.float32)}
        tensors["lm_head.weight"] = tensors.pop("embed_out.weight")
        return tensors | masks | buffers

    rewrite(folder, older)
    assert_equal(hf.import_checkpoint(folder)[1], hf.import_checkpoint(STORED / "gpt_neox")[1])


def encoded(name, pickled=False):
    """A name as AI2's trainer writes it into safetensors."""
    return base64.urlsafe_b64encode(pickle.dumps(((name,), pickled))).decode("ascii")


@pytest.mark.parametrize(
    ("prefix", "yaml_", "named"),
    [("model.transformer.", False, str), ("transformer.", True, str), ("transformer.", True, encoded)],
)
def test_ai2s_original_names_of_olmo_give_the_same_logits(folder, prefix, yaml_, named):
    """OLMo's trainer stacks query, key and value, and the up projection on the gate; config.json is that of hf_olmo."""
    rewrite(folder, lambda tensors: {n: x for n, x in tensors.items() if not n.endswith("proj.bias")})
    edit(folder, attention_bias=False)
    reference, expected = hf.import_checkpoint(folder)

    rewrite(folder, lambda tensors: ai2_names(tensors, prefix, named))
    settings = {
        "d_model": 16, "n_heads": 2, "n_layers": 2, "n_kv_heads": 1, "mlp_hidden_size": 48, "activation_type": "swiglu",
        "block_type": "sequential", "rope": True, "rope_theta": reference.rope_theta, "layer_norm_type": "default",
        "layer_norm_with_affine": False, "include_bias": False, "weight_tying": False, "clip_qkv": 0.2,
        "max_sequence_length": 512, "vocab_size": 60, "embedding_size": 64,
    }  # fmt: skip
    (folder / "config.json").unlink()
    if yaml_:
        (folder / "config.yaml").write_text(yaml.safe_dump({"run_name": "x", "model": settings}))
    else:
        called = {"architectures": ["OLMoForCausalLM"], "model_type": "hf_olmo"}
        (folder / "config.json").write_text(json.dumps(settings | called))
    config, params = hf.import_checkpoint(folder)
    assert (config.vocab_size, config.padded_vocab_size) == (60, 64)
    assert_equal(params, expected)
    tokens = np.arange(20)[None]
    ours, theirs = model.apply(config, params, tokens), model.apply(reference, expected, tokens)
    np.testing.assert_array_equal(ours.logits_BLV, theirs.logits_BLV)

    if named is encoded:  # a value that is itself a pickle isn't opened
        rewrite(folder, lambda tensors: tensors | {encoded("optimizer", pickled=True): np.zeros(3, np.uint8)})
        with pytest.raises(WeightsError, match="holds a pickle under"):
            hf.import_checkpoint(folder)


def ai2_names(tensors, prefix="model.transformer.", named=str):
    """The tensors of an OLMo or Llama of two blocks under the names of AI2's own trainer."""
    renamed = {f"{prefix}wte.weight": tensors["model.embed_tokens.weight"]}
    renamed[f"{prefix}ff_out.weight"] = tensors["lm_head.weight"]
    if "model.norm.weight" in tensors:
        renamed[f"{prefix}ln_f.weight"] = tensors["model.norm.weight"]
    for i in range(2):
        theirs, block = f"model.layers.{i}", f"{prefix}blocks.{i}"
        qkv = [tensors[f"{theirs}.self_attn.{x}_proj.weight"] for x in "qkv"]
        renamed[f"{block}.att_proj.weight"] = np.concatenate(qkv)
        renamed[f"{block}.attn_out.weight"] = tensors[f"{theirs}.self_attn.o_proj.weight"]
        up_gate = [tensors[f"{theirs}.mlp.{x}_proj.weight"] for x in ("up", "gate")]
        renamed[f"{block}.ff_proj.weight"] = np.concatenate(up_gate)
        renamed[f"{block}.ff_out.weight"] = tensors[f"{theirs}.mlp.down_proj.weight"]
        for ours, norm in (("attn_norm", "input_layernorm"), ("ff_norm", "post_attention_layernorm")):
            if f"{theirs}.{norm}.weight" in tensors:
                renamed[f"{block}.{ours}.weight"] = tensors[f"{theirs}.{norm}.weight"]
    return {named(name): x for name, x in renamed.items()}


def test_datadecides_checkpoints_with_rmsnorm_have_the_logits_of_the_same_llama(tmp_path, vary):
    """DataDecide's config.json, made smaller; there are no weights of theirs here to compare with."""
    published = json.loads(PUBLISHED.read_text())
    settings = published["DataDecide-1B"]["settings"] | {
        "d_model": 16, "n_heads": 2, "n_layers": 2, "max_sequence_length": 64, "vocab_size": 60, "embedding_size": 64,
    }  # fmt: skip
    small = {
        "d_model": 16, "n_heads": 2, "n_layers": 2, "d_ff": 64, "context_length": 64, "tied": False, "vocab_size": 60,
        "pad_vocab_to": 64, "norm": "rms_norm", "norm_eps": 1e-6,
    }  # fmt: skip
    llama = vary(OLMO["1b"], small)
    keys = iter(jax.random.split(jax.random.key(0), 40))
    params = jax.tree.map(lambda x: np.asarray(jax.random.normal(next(keys), x.shape)), model.init(llama, next(keys)))
    hf.export_checkpoint(llama, params, tmp_path / "model")
    rewrite(tmp_path / "model", ai2_names)
    (tmp_path / "model" / "config.json").write_text(json.dumps(settings))
    config, again = hf.import_checkpoint(tmp_path / "model")
    assert config == llama
    assert_equal(again, params)


AI2 = {
    "d_model": 16, "n_heads": 2, "n_layers": 2, "n_kv_heads": None, "mlp_ratio": 6, "activation_type": "swiglu",
    "block_type": "sequential", "rope": True, "layer_norm_type": "default", "include_bias": False,
    "weight_tying": False, "vocab_size": 300, "embedding_size": 384,
}  # fmt: skip


def ai2_tokenizer(path, first):
    """One whose token 0 is `first`, added and not special, as OLMo-1's; its end of text has another number."""
    vocab = {first: 0, **{c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), 1)}}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.add_tokens([first])
    backend.add_special_tokens(["<|padding|>", "<|endoftext|>"])
    backend.save(str(path / "tokenizer.json"))
    return epath.Path(path / "tokenizer.json")


@pytest.mark.parametrize(
    ("settings", "first", "expected"),
    [
        ({"eos_token_id": 0}, "|||IP_ADDRESS|||", "<|endoftext|>"),
        ({"eos_token_id": [0, 5]}, "|||IP_ADDRESS|||", "<|endoftext|>"),
        ({"eos_token_id": 0, "pad_token_id": 0}, "<|endoftext|>", "<|endoftext|>"),
        ({"eos_token_id": 258}, "|||IP_ADDRESS|||", "<|endoftext|>"),
        ({"eos_token_id": 257}, "|||IP_ADDRESS|||", "<|padding|>"),
    ],
)
@pytest.mark.parametrize("name", ["config.yaml", "config.json", "OlmoForCausalLM"])
def test_end_of_text_of_ai2_folders_is_corrected_as_in_transformers(tmp_path, capsys, settings, first, expected, name):
    if name == "config.yaml":
        (tmp_path / name).write_text(yaml.safe_dump({"model": AI2 | settings}))
    else:
        named = {"architectures": [name]} if name == "OlmoForCausalLM" else AI2
        (tmp_path / "config.json").write_text(json.dumps(named | settings))
    assert eos_of(epath.Path(tmp_path), ai2_tokenizer(tmp_path, first)) == expected
    mended = first != expected and settings["eos_token_id"] in (0, [0, 5])
    line = capsys.readouterr().err
    assert ("eos_token_id = 0 is '|||IP_ADDRESS|||', a known mistake; using <|endoftext|>" in line) == mended


@pytest.mark.parametrize("eos", [None, [], "2", -1, 10**12, True, {"a": 1}, [None]])
def test_an_invalid_end_of_text_is_refused(tmp_path, eos):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["GPTNeoXForCausalLM"], "eos_token_id": eos}))
    with pytest.raises(ConfigError, match=r"config\.json: eos_token_id = .* isn't the id of a token in"):
        eos_of(epath.Path(tmp_path), ai2_tokenizer(tmp_path, "a"))


@pytest.mark.parametrize(
    ("adds", "expected"), [(True, "<|padding|>"), (False, "<|endoftext|>"), (None, "<|endoftext|>")]
)
def test_a_document_begins_with_the_token_that_the_tokenizer_adds(tmp_path, adds, expected):
    settings = {"architectures": ["LlamaForCausalLM"], "eos_token_id": 258, "bos_token_id": 257}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    if adds is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": adds}))
    assert eos_of(epath.Path(tmp_path), ai2_tokenizer(tmp_path, "|||IP_ADDRESS|||")) == expected
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json: isn't a tokenizer's configuration"):
        eos_of(epath.Path(tmp_path), ai2_tokenizer(tmp_path, "|||IP_ADDRESS|||"))


def test_numbers_in_yaml_need_no_dot(tmp_path):
    settings = (
        yaml.safe_dump({"model": AI2})
        + "  rope_theta: 1e6\n  init_std: 2E-2\n  layer_norm_eps: 1e-5\n  clip_qkv: 8.e0\n"
    )
    (tmp_path / "config.yaml").write_text(settings)
    _, config = read_config(epath.Path(tmp_path))
    assert (config.rope_theta, config.init_std, config.norm_eps, config.clip_qkv) == (1e6, 0.02, 1e-5, 8.0)
    assert (config.vocab_size, config.padded_vocab_size, config.d_ff) == (300, 384, 48)


@pytest.mark.parametrize(
    "text",
    ["model: !!timestamp x", "model: !!int x", "model: !!bool x", "model: !!float ''", "model: [", "model: {? [a] : b}",
     "- a", "model", "", "model: !!python/object:os.system x", "\0", "{" * 9999],
)  # fmt: skip
def test_yaml_that_is_no_configuration_is_refused(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml: isn't a model's configuration") as raised:
        read_config(epath.Path(tmp_path))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000


def test_yaml_with_exponential_aliases_is_refused(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    model = yaml.safe_dump({"model": AI2 | {"vocab_size": 300}}).replace("vocab_size: 300", "vocab_size: *a11")
    (tmp_path / "config.yaml").write_text("\n".join(lines) + "\n" + model)
    with pytest.raises(ConfigError, match=r"config\.yaml") as raised:
        read_config(epath.Path(tmp_path))
    assert len(str(raised.value)) < 9**6


def test_a_hugging_face_cache_and_any_folder_s_name_are_read(folder, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--a--b [1e-2]" / "snapshots" / "0123\udcff"
    snapshot.mkdir(parents=True)
    train_bpe(["a"], 257, "<|endoftext|>").save(folder / "tokenizer.json")
    rewrite(
        folder, lambda t: t | {n: np.resize(t[n], (384, 16)) for n in ("model.embed_tokens.weight", "lm_head.weight")}
    )
    edit(folder, vocab_size=384)
    for i, file in enumerate(["config.json", "model.safetensors", "tokenizer.json"]):
        (folder / file).rename(tmp_path / f"{i}")
        (snapshot / file).symlink_to(tmp_path / f"{i}")
    monkeypatch.setenv("HOME", str(snapshot.parent))
    for path in (snapshot, "~/0123\udcff"):
        config, params = hf.import_checkpoint(path)
        assert (config.vocab_size, len(params["embedding"])) == (257, 384)
    hf.export_checkpoint(config, params, "~/out\udcff [x]", tokenizer=snapshot / "tokenizer.json")
    assert_equal(hf.import_checkpoint(snapshot.parent / "out\udcff [x]")[1], params)


def test_rows_beyond_the_tokenizer_are_padding(folder):
    tokenizer = train_bpe(["a small text"], 262, "<|endoftext|>")
    tokenizer.save(folder / "tokenizer.json")
    with pytest.raises(ConfigError, match=rf"tokenizer\.json: has {tokenizer.vocab_size} tokens, .* vocabulary has 64"):
        hf.import_checkpoint(folder)
    rows = 384

    def longer(tensors):
        ends = ("model.embed_tokens.weight", "lm_head.weight")
        return tensors | {name: np.resize(tensors[name], (rows, 16)) for name in ends}

    rewrite(folder, longer)
    edit(folder, vocab_size=rows)
    config, params = hf.import_checkpoint(folder)
    assert (config.vocab_size, config.padded_vocab_size) == (tokenizer.vocab_size, rows)
    assert params["embedding"].shape == (rows, 16)


def test_a_model_without_a_hugging_face_architecture_is_not_exported(vary, tmp_path):
    config = vary(PYTHIA["14m"], {"positions": "learned", "vocab_size": 50, "d_model": 8, "n_layers": 1})
    with pytest.raises(ConfigError, match=r"from the closest, GPTNeoXForCausalLM, it differs in positions = 'learned'"):
        hf.export_checkpoint(config, model.init(config, jax.random.key(0)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_export_overwrites_nothing_and_leaves_no_partial_folder(tmp_path, monkeypatch):
    config, params = hf.import_checkpoint(STORED / "olmo")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    with pytest.raises(WeightsError, match="already exists"):
        hf.export_checkpoint(config, params, tmp_path / "there")
    with pytest.raises(ConfigError, match="dtype = 'int4': needs one of float32, bfloat16"):
        hf.export_checkpoint(config, params, tmp_path / "new", dtype="int4")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("olmo_jax.hf.writing.save_file", full)
    with pytest.raises(OSError, match="No space"):
        hf.export_checkpoint(config, params, tmp_path / "new")
    assert [p.name for p in tmp_path.rglob("*")] == ["there", "mine.txt"]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 268435456\n"


def drop(name):
    return lambda tensors: {n: x for n, x in tensors.items() if n != name}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda f: edit(f, architectures=["FalconForCausalLM"], model_type="falcon"), ConfigError,
         "config.json FalconForCausalLM isn't known OlmoForCausalLM Olmo2ForCausalLM GPTNeoXForCausalLM"),
        (lambda f: edit(f, architectures=None, model_type=None), ConfigError, "(none named)"),
        (lambda f: edit(f, hidden_size=None), ConfigError, "config.json lacks 'hidden_size'"),
        (lambda f: edit(f, hidden_act="gelu"), ConfigError, "config.json hidden_act = 'gelu' 'silu'"),
        (lambda f: edit(f, head_dim=5), ConfigError, "head_dim = 5"),
        (lambda f: edit(f, num_attention_heads=3), ConfigError, "n_heads = 3 doesn't divide"),
        (lambda f: edit(f, num_attention_heads=0), ConfigError, "config.json has a setting of the wrong type"),
        (lambda f: edit(f, hidden_size="16"), ConfigError, "config.json has a setting of the wrong type"),
        (lambda f: edit(f, rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.5}), ConfigError,
         "config.json partial_rotary_factor = 0.5"),
        (lambda f: edit(f, rope_parameters=[1]), ConfigError, "config.json has a setting of the wrong type"),
        (lambda f: edit(f, olmo_jax={"vocab_size": 65, "pad_vocab_to": 1}), ConfigError, "olmo_jax = 1 to 64"),
        (lambda f: edit(f, olmo_jax=[1]), ConfigError, "olmo_jax = [1]"),
        (lambda f: edit(f, architectures="T5ForX", model_type="t5"), ConfigError, "architecture T5ForX isn't known"),
        (lambda f: rewrite(f, lambda t: {n: (x * 9).astype(np.int8) for n, x in t.items()}), WeightsError,
         "is stored as int8 quantised float32"),
        (lambda f: (f / "config.json").write_text("{"), ConfigError, "config.json isn't a model's configuration"),
        (lambda f: (f / "config.json").write_text("[]"), ConfigError, "config.json isn't a model's configuration"),
        (lambda f: (f / "config.json").unlink(), WeightsError, "has no config.json"),
        (lambda f: rewrite(f, drop("model.layers.1.mlp.up_proj.weight")), WeightsError,
         "OlmoForCausalLM lack the tensors model.layers.1.mlp.up_proj.weight"),
        (lambda f: edit(f, num_hidden_layers=1), WeightsError,
         "have the unexpected tensors model.layers.1.mlp.down_proj.weight and more"),
        (lambda f: edit(f, intermediate_size=32), WeightsError,
         "'model.layers.0.mlp.gate_proj.weight' (24, 16) (32, 16)"),
        (lambda f: ((f / "model.safetensors").unlink(), (f / "pytorch_model.bin").write_bytes(b"x")), WeightsError,
         "pytorch_model.bin pickle can run any code"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x10"), WeightsError, "not a complete .safetensors"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), ConfigError, "tokenizer.json isn't a tokenizer.json"),
        (shutil.rmtree, WeightsError, "no such folder"),
        (lambda f: (shutil.rmtree(f), f.write_text("x")), WeightsError, "is a file give the folder"),
        (lambda f: (f / "config.json").write_bytes(b"{\xff}"), ConfigError, "isn't a model's configuration"),
        (lambda f: (f / "config.json").write_bytes(bytes(99)), ConfigError, "isn't a model's configuration"),
        (lambda f: (f / "config.json").write_text("[" * 99999), ConfigError, "isn't a model's configuration"),
        (lambda f: (f / "config.json").write_text('{"hidden_size": 1' + "0" * 5000 + "}"), ConfigError,
         "isn't a model's configuration"),
        (lambda f: (f / "config.json").write_bytes(POINTER), ConfigError, "config.json: is a Git LFS pointer"),
        (lambda f: (f / "tokenizer.json").write_bytes(POINTER), ConfigError, "tokenizer.json: is a Git LFS pointer"),
        (lambda f: (f / "tokenizer.json").write_bytes(bytes(99)), ConfigError, "isn't a tokenizer.json"),
        (lambda f: edit(f, hidden_size=float("inf")), ConfigError, "d_model = inf type int"),
        (lambda f: edit(f, hidden_size=10**30), WeightsError, "a width of 1000000"),
        (lambda f: edit(f, hidden_size=2 * 10**12), WeightsError, "a width of 2000000000000 longest side 64"),
        (lambda f: edit(f, hidden_size=10**4000), ConfigError, "config.json"),
        (lambda f: edit(f, vocab_size=10**12), WeightsError, "a vocabulary of 1000000000000"),
        (lambda f: edit(f, vocab_size=10**400), WeightsError, "a vocabulary of 10000"),
        (lambda f: edit(f, intermediate_size=10**12), WeightsError, "an inner width of 1000000000000"),
        (lambda f: edit(f, num_hidden_layers=10**9), WeightsError, "1000000000 layers"),
        (lambda f: edit(f, num_hidden_layers=-1), ConfigError, "n_layers = -1"),
        (lambda f: edit(f, rope_theta=[1], rope_parameters={"rope_theta": 10**400}), ConfigError, "wrong type"),
        (lambda f: edit(f, vocab_size={"a": ["x" * 9999] * 999}), ConfigError, "vocab_size type int"),
        (lambda f: edit(f, architectures=7, model_type="t5"), ConfigError, "architecture 7 isn't known"),
        (lambda f: edit(f, architectures=["x" * 9999], model_type="t5"), ConfigError, "isn't known"),
        (lambda f: edit(f, architectures={"a": 1}, model_type=[]), ConfigError, "isn't known"),
    ],
)  # fmt: skip
def test_mismatched_tensors_are_reported_in_one_line(folder, change, error, words):
    change(folder)
    with pytest.raises(error) as raised:
        hf.import_checkpoint(folder)
    message = str(raised.value)
    assert str(folder) in message
    assert "\n" not in message
    assert len(message) < 2000
    missing = [word for word in words.split() if word not in message]
    assert not missing, message


def test_a_separate_head_in_a_tied_models_file_is_ignored(tmp_path):
    """Some versions of transformers write the tied matrix twice and never read the second copy."""
    folder = pathlib.Path(shutil.copytree(STORED / "olmo2_tied", tmp_path / "tied"))
    expected = hf.import_checkpoint(folder)[1]
    rewrite(folder, lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()})
    assert_equal(hf.import_checkpoint(folder)[1], expected)
    rewrite(folder, lambda tensors: tensors | {"lm_head.weight": tensors["lm_head.weight"] + 1})
    with pytest.raises(WeightsError, match="'lm_head.weight' differs from the embedding"):
        hf.import_checkpoint(folder)


def test_the_checker_names_the_first_layer_that_differs():
    config, params = hf.import_checkpoint(STORED / "gpt_neox")
    tokens = np.arange(12)[None]
    output = model.apply(config, params, tokens, layers=True)
    reference = {f"blocks_{i}": x for i, x in enumerate(output.hidden.layers)} | {"logits": output.logits_BLV}
    assert hf.first_drift(config, params, tokens, reference) is None
    wrong = params | {"blocks_1": params["blocks_1"] | {"mlp": params["blocks_0"]["mlp"]}}
    assert hf.first_drift(config, wrong, tokens, reference)[0] == "blocks_1"
    nan = params | {"unembedding": params["unembedding"] * np.float32("nan")}
    name, share = hf.first_drift(config, nan, tokens, reference)
    assert name == "logits"
    assert np.isnan(share)
    with pytest.raises(ValueError, match="reference has the unknown names blocks_7; known are embedding, blocks_0"):
        hf.first_drift(config, params, tokens, {"blocks_7": output.logits_BLV})
    with pytest.raises(ValueError, match=r"reference\['logits'\] has shape \(12, 64\), but ours has \(1, 12, 64\)"):
        hf.first_drift(config, params, tokens, {"logits": output.logits_BLV[0]})


def test_a_model_folder_with_runs_is_no_working_directory(folder):
    """transformers' Trainer creates a folder `runs` for TensorBoard."""
    (folder / "runs" / "Nov24_host").mkdir(parents=True)
    assert_equal(hf.import_checkpoint(folder)[1], hf.import_checkpoint(STORED / "olmo")[1])
