"""GGUF files, written here as llama.cpp's converter writes them, against Hugging Face folders of the same models."""

import json
import pathlib
import shutil

import gguf
import jax
import numpy as np
import pytest
from tokenizers import SentencePieceBPETokenizer, Tokenizer

from olmo_jax import hf, weights
from olmo_jax.config import ConfigError
from olmo_jax.data.tokenizer import train_bpe
from olmo_jax.hf.gguf import quantization_of
from olmo_jax.hf.gguf_tokenizer import tokenizer_of
from olmo_jax.storage.gguf import QUANTIZATIONS, open_gguf
from olmo_jax.weights import WeightsError
from tests.olmo_jax.hf.gguf_files import convert, tokenizer_metadata

STORED = pathlib.Path(__file__).parent / "stored"
TEXTS = ["the theme of the thin thing\n\n  is 1234 then", "  there\tthin", "été 日本 😀"]


def plain(tmp_path, name, **changes):
    """A copy of a stored folder with changed settings."""
    folder = pathlib.Path(shutil.copytree(STORED / name, tmp_path / name))
    settings = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


UNSCALED = {"rope_type": "default", "rope_theta": 5e5}
TWO = {"full_attention": UNSCALED, "sliding_attention": UNSCALED | {"rope_theta": 1e4}}
CASES = {
    "llama": ("llama", {"rope_parameters": UNSCALED}),
    "mistral": ("llama", {}),
    "qwen2": ("qwen2", {}),  # with linear scaling
    "qwen3": ("qwen3", {"use_sliding_window": False, "sliding_window": None, "layer_types": None}),
    "olmo2": ("olmo2", {}),
    "gpt2": ("gpt2", {}),
    "gemma3": ("gemma3", {"layer_types": None, "query_pre_attn_scalar": 12, "rope_parameters": TWO}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_converted_model_is_imported_as_its_folder_is(name, tmp_path):
    architecture, changes = CASES[name]
    folder = plain(tmp_path, name, **changes)
    config, params = hf.import_checkpoint(convert(folder, tmp_path / "model.gguf", architecture))
    expected_config, expected = hf.import_checkpoint(folder)
    ignored = {"context_length": config.context_length, "init_std": config.init_std}
    assert config == expected_config.__class__(**{**vars(expected_config), **ignored})
    # Gemma's norms are stored with 1 added, which rounds them.
    compare = (
        np.testing.assert_array_equal if name != "gemma3" else lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7)
    )
    jax.tree.map(compare, params, expected)


def test_llama3s_scaling_is_recognised_by_its_divisors(tmp_path):
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = UNSCALED | scaling | {"original_max_position_embeddings": 8192}
    folder = plain(tmp_path, "llama", rope_parameters=rope)
    path = convert(folder, tmp_path / "unscaled.gguf", "llama")
    reader, half = gguf.GGUFReader(path), 6
    # As transformers and llama.cpp's converter compute them.
    frequency = 1.0 / 5e5 ** (np.arange(0, 12, 2) / 12)
    wavelength = 2 * np.pi / frequency
    smooth = (8192 / wavelength - 1) / (4 - 1)
    divisors = np.where(wavelength > 8192, 8.0, np.where(wavelength < 8192 / 4, 1.0, 1 / ((1 - smooth) / 8 + smooth)))
    for file, numbers in (("llama3.gguf", divisors), ("other.gguf", divisors**1.1)):
        writer = gguf.GGUFWriter(tmp_path / file, "llama")
        for field in reader.fields.values():
            if field.name.startswith("llama."):
                add = writer.add_float32 if field.types[0] == gguf.GGUFValueType.FLOAT32 else writer.add_uint32
                add(field.name, field.contents())
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, np.array(tensor.data))
        writer.add_tensor("rope_freqs.weight", numbers.astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    assert half == len(divisors)
    assert (
        hf.import_checkpoint(tmp_path / "llama3.gguf")[0].rope_scaling == hf.import_checkpoint(folder)[0].rope_scaling
    )
    with pytest.raises(ConfigError, match=r"other\.gguf: its rope_freqs\.weight match no known scaling"):
        hf.import_checkpoint(tmp_path / "other.gguf")


def write_matrix(path, quantization, stored, rows=4, architecture="llama"):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tensor(
        "blk.0.ffn_up.weight", stored.reshape(rows, -1), raw_dtype=gguf.GGMLQuantizationType[quantization]
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_every_type_is_dequantised(quantization, tmp_path):
    kind = gguf.GGMLQuantizationType[quantization]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    x = np.random.default_rng(0).normal(size=(4, 512)).astype(np.float32)
    try:
        stored, tolerance = gguf.quantize(x, kind), {"F32": 0, "F16": 1e-3, "BF16": 1e-2}.get(quantization, 0.3)
    except (
        NotImplementedError
    ):  # of some only dequantisation is written; any bytes are a block, scales set to small ones
        stored = np.random.default_rng(0).integers(0, 60, 4 * 512 // block * size).astype(np.uint8)
        x, tolerance = gguf.dequantize(stored.reshape(4, -1), kind), 0
    (tensor,) = weights.models(write_matrix(tmp_path / "x.gguf", quantization, np.asarray(stored)))[0].tensors()
    assert (tensor.name, tensor.shape, tensor.dtype) == ("blk.0.ffn_up.weight", (4, 512), "float32")
    read = tensor.read()
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, x, atol=tolerance)


def test_an_unknown_quantisation_and_architecture_are_named(tmp_path):
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.IQ4_XS][1]
    path = write_matrix(tmp_path / "iq.gguf", "IQ4_XS", np.zeros(4 * 2 * size, np.uint8))
    with pytest.raises(WeightsError, match=r"'blk\.0\.ffn_up\.weight' is quantised as IQ4_XS.*Q4_K, Q5_K, Q6_K can"):
        weights.models(path)[0].tensors()[0].read()
    path = write_matrix(tmp_path / "mamba.gguf", "F32", np.zeros((4, 8), np.float32), architecture="mamba")
    with pytest.raises(ConfigError, match=r"mamba\.gguf: the architecture 'mamba' can't be read.*llama, qwen2"):
        hf.import_checkpoint(path)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    return convert(STORED / "mistral", tmp_path_factory.mktemp("gguf") / "model.gguf", "llama")


def test_a_file_cut_short_anywhere_is_refused_in_one_line(converted, tmp_path):
    content = converted.read_bytes()
    for size in [0, 3, 10, 23, 24, 40, 100, *np.linspace(200, len(content) - 33, 40).astype(int)]:
        (tmp_path / f"{size}.gguf").write_bytes(content[:size])
        with pytest.raises(WeightsError, match="get it again") as raised:
            hf.import_checkpoint(tmp_path / f"{size}.gguf")
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("at", "content", "words"),
    [
        (0, b"GGML", "doesn't begin with 'GGUF'"),
        (4, b"\x01\0\0\0", "version 1"),
        (4, b"\0\0\0\x03", "big-endian"),
        (8, b"\xff" * 8, "announces"),
        (16, b"\xff" * 7, "announces"),
    ],
)
def test_a_damaged_header_is_refused(at, content, words, converted, tmp_path):
    damaged = bytearray(converted.read_bytes())
    damaged[at : at + len(content)] = content
    (tmp_path / "x.gguf").write_bytes(damaged)
    with pytest.raises(WeightsError, match=words):
        open_gguf(tmp_path / "x.gguf")


def test_the_quantisation_with_most_parameters_comes_first(tmp_path):
    changes = {"rope_parameters": UNSCALED}
    path = convert(plain(tmp_path, "llama", **changes), tmp_path / "model.gguf", "llama", "F16")
    assert quantization_of(path) == "F16"
    config, params = hf.import_checkpoint(path)
    assert config.d_model == 16
    _, exact = hf.import_checkpoint(tmp_path / "llama")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), params, exact)


@pytest.mark.parametrize(
    ("rule", "pieces"),
    [("gpt-2", ["Ġ1234"]), ("smollm", ["1", "2", "3", "4"]), ("llama-bpe", ["Ġ", "123", "4"]), ("qwen2", ["1", "2"])],
)
def test_a_byte_level_tokenizer_is_rebuilt(rule, pieces, tmp_path):
    train_bpe(TEXTS * 4, 300, "<|endoftext|>").save(tmp_path / "tokenizer.json")
    original = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = original["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in original["model"]["merges"]]
    metadata = tokenizer_metadata(tokens, "gpt2", rule, ["<|endoftext|>"], tokenizer__ggml__merges=merges)
    rebuilt = Tokenizer.from_str(tokenizer_of(convert(STORED / "mistral", tmp_path / "x.gguf", "llama", **metadata)))
    for text in TEXTS:
        encoded = rebuilt.encode(text, add_special_tokens=False)
        assert rebuilt.decode(encoded.ids, skip_special_tokens=False) == text
    assert rebuilt.encode("a<|endoftext|>").ids[-1] == vocabulary["<|endoftext|>"]
    split = [piece for piece, _ in rebuilt.pre_tokenizer.pre_tokenize_str("is 1234")]
    assert [piece for piece in pieces if piece in split] == pieces


def test_a_sentencepiece_tokenizer_is_rebuilt(tmp_path):
    original = SentencePieceBPETokenizer(add_prefix_space=False)
    original.train_from_iterator(TEXTS[:2] * 4, vocab_size=80, special_tokens=["<unk>"])
    vocabulary = original.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    scores = [float(-i) for i in range(len(tokens))]
    metadata = tokenizer_metadata(
        tokens, "llama", tokenizer__ggml__scores=scores, tokenizer__ggml__add_space_prefix=False
    )
    rebuilt = Tokenizer.from_str(tokenizer_of(convert(STORED / "mistral", tmp_path / "x.gguf", "llama", **metadata)))
    for text in ("the theme of the thin thing", "there then the"):
        assert rebuilt.encode(text).tokens == original.encode(text).tokens
        assert rebuilt.decode(rebuilt.encode(text).ids) == text


@pytest.mark.parametrize("metadata", [{}, {"kind": "gpt2", "rule": "tekken"}, {"kind": "bert"}])
def test_a_tokenizer_that_cannot_be_rebuilt_says_what_is_missing(metadata, tmp_path):
    stored = tokenizer_metadata(["a", "b"], **metadata) if metadata else {}
    path = convert(STORED / "mistral", tmp_path / "x.gguf", "llama", **stored)
    with pytest.raises(ConfigError, match=r"x\.gguf: its tokenizer .* can't be rebuilt.*data\.tokenizer"):
        tokenizer_of(path)
    assert hf.import_checkpoint(path)[0].n_layers == 2  # the weights can be read all the same
