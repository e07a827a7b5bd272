"""Write GGUF files from Hugging Face folders, as llama.cpp's converter does."""

import json

import gguf
import numpy as np
from safetensors.numpy import load_file

DECODER = {
    "hidden_size": "embedding_length", "num_hidden_layers": "block_count", "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count", "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon", "max_position_embeddings": "context_length",
    "head_dim": "attention.key_length", "sliding_window": "attention.sliding_window",
}  # fmt: skip
GPT2 = {
    "n_embd": "embedding_length", "n_layer": "block_count", "n_inner": "feed_forward_length",
    "n_head": "attention.head_count", "n_positions": "context_length",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
}  # fmt: skip


def interleaved(rows, heads):
    """Llama's rows of queries or keys as the converter orders them."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def convert(folder, path, architecture, quantization=None, **metadata):
    """Write a Hugging Face folder as GGUF; `quantization` is that of matrices."""
    settings = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(path, architecture)
    for setting, end in (GPT2 if architecture == "gpt2" else DECODER).items():
        if (value := settings.get(setting)) is not None:
            (writer.add_float32 if "epsilon" in end else writer.add_uint32)(f"{architecture}.{end}", value)
    rope = settings.get("rope_parameters", {})
    rope = rope.get("full_attention", rope)
    if "rope_theta" in rope:
        writer.add_float32(f"{architecture}.rope.freq_base", rope["rope_theta"])
    if rope.get("rope_type") == "linear":
        writer.add_string(f"{architecture}.rope.scaling.type", "linear")
        writer.add_float32(f"{architecture}.rope.scaling.factor", rope["factor"])
    for key, value in metadata.items():
        add = {str: writer.add_string, int: writer.add_uint32, bool: writer.add_bool, list: writer.add_array}
        add[type(value)](key.replace("__", "."), value)
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, settings.get("num_hidden_layers", settings.get("n_layer")))
    for name, x in load_file(folder / "model.safetensors").items():
        stem, _, end = name.rpartition(".")
        theirs = f"{names.get_name(stem)}.{end}"
        if architecture == "gemma3" and theirs.endswith("norm.weight"):
            x = x + 1  # noqa: PLW2901
        if architecture == "gpt2" and x.ndim == 2 and theirs.startswith("blk."):
            x = x.T  # noqa: PLW2901
        if architecture == "llama" and (".attn_q." in theirs or ".attn_k." in theirs):
            x = interleaved(x, settings["num_attention_heads" if "attn_q" in theirs else "num_key_value_heads"])  # noqa: PLW2901
        if quantization and x.ndim == 2:
            kind = gguf.GGMLQuantizationType[quantization]
            writer.add_tensor(theirs, gguf.quantize(x, kind), raw_dtype=kind)
        else:
            writer.add_tensor(theirs, np.ascontiguousarray(x))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tokenizer_metadata(tokens, kind, rule="default", control=(), **more):
    kinds = [3 if token in control else 1 for token in tokens]
    model = {"tokenizer__ggml__model": kind, "tokenizer__ggml__pre": rule, "tokenizer__ggml__tokens": tokens}
    return model | {"tokenizer__ggml__token_type": kinds} | more
