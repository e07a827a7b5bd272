"""Reference models of transformers with random settings and weights.

    python -m tests.oracles.models        (in the environment of `make oracles`: writes tests/olmo_jax/hf/stored anew)

The stored ones let the plain tests compare where torch isn't installed: each a folder as transformers saves it, and
beside it a file with tokens, logits, the loss and its gradient.
"""

import pathlib
import shutil

import numpy as np
from safetensors.numpy import save_file

STORED = pathlib.Path(__file__).parent.parent / "olmo_jax" / "hf" / "stored"
FAMILIES = (
    "olmo", "olmo2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "olmo3", "smollm3", "gpt2", "gemma3",
)  # fmt: skip


def random_model(family, seed, **fixed):
    """A model with settings drawn by seed, every parameter away from where it starts, norms and biases included."""
    import torch
    import transformers

    rng = np.random.default_rng([seed, FAMILIES.index(family)])
    names, settings = _settings(family, lambda *values: values[rng.integers(len(values))])
    if family == "gpt2":
        fixed = {GPT2_NAMES.get(name, name): value for name, value in fixed.items()}
    settings |= fixed
    if "layer_types" in settings:
        settings["layer_types"] = settings["layer_types"][: settings["num_hidden_layers"]]
    kind, architecture = (getattr(transformers, name) for name in names)
    torch.manual_seed(seed)
    model = architecture(kind(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


GPT2_NAMES = {
    "hidden_size": "n_embd", "num_attention_heads": "n_head", "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer", "max_position_embeddings": "n_positions",
}  # fmt: skip


def _settings(family, pick):
    """The names of a family's configuration and model in transformers, and settings drawn by `pick`."""
    heads = pick(1, 2, 4, 8)
    settings = {
        "vocab_size": pick(64, 97, 256),
        "num_attention_heads": heads,
        "hidden_size": heads * pick(4, 8, 12, 16),
        "intermediate_size": pick(24, 40, 96),
        "num_hidden_layers": pick(1, 2, 3),
        "tie_word_embeddings": pick(True, False),
        "attention_bias": pick(True, False),
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": pick(1e3, 1e4, 5e5)},
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    if family == "gpt_neox":
        settings["use_parallel_residual"] = pick(True, False)
        settings["rope_parameters"]["partial_rotary_factor"] = pick(0.5, 1.0)
        settings["layer_norm_eps"] = pick(1e-5, 1e-3)
        return ("GPTNeoXConfig", "GPTNeoXForCausalLM"), settings
    if family == "gpt2":
        settings["activation_function"] = pick("gelu_new", "gelu")
        settings["layer_norm_epsilon"] = pick(1e-5, 1e-3)
        for name in ("attention_bias", "rope_parameters"):
            del settings[name]
        dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        return ("GPT2Config", "GPT2LMHeadModel"), {GPT2_NAMES.get(n, n): x for n, x in settings.items()} | dropout
    settings["num_key_value_heads"] = pick(*(n for n in (1, 2, 4, 8) if heads % n == 0))
    if family == "olmo":
        settings["clip_qkv"] = pick(None, 0.1, 0.5)
        return ("OlmoConfig", "OlmoForCausalLM"), settings
    settings["rms_norm_eps"] = pick(1e-6, 1e-5, 1e-3)
    if family == "olmo2":
        return ("Olmo2Config", "Olmo2ForCausalLM"), settings
    context, theta = settings["max_position_embeddings"], settings["rope_parameters"]["rope_theta"]
    llama3 = {"low_freq_factor": 1.0, "high_freq_factor": pick(4.0, 8.0)}
    scalings = {
        "default": {},
        "linear": {"factor": 4.0},
        "llama3": llama3 | {"factor": 8.0, "original_max_position_embeddings": context // 4},
        "yarn": {"factor": pick(4.0, 8.0), "original_max_position_embeddings": context // 4, "beta_fast": 32.0},
    }
    kind = pick(*scalings)
    scaled = {"rope_type": kind, "rope_theta": theta} | scalings[kind]
    window = pick(3, 8, 60)
    drawn = [pick("sliding_attention", "full_attention") for _ in range(3)]
    two = {"full_attention": scaled, "sliding_attention": {"rope_type": "default", "rope_theta": theta}}
    if family == "olmo3":
        settings |= {"rope_parameters": two, "sliding_window": window, "layer_types": ["sliding_attention", *drawn[:2]]}
        return ("Olmo3Config", "Olmo3ForCausalLM"), settings
    if family == "gemma3":
        two["sliding_attention"]["rope_theta"] = pick(1e2, 1e4)
        settings |= {"rope_parameters": two, "sliding_window": window, "layer_types": drawn, "head_dim": pick(8, 12)}
        return ("Gemma3TextConfig", "Gemma3ForCausalLM"), settings | {"query_pre_attn_scalar": pick(8, 20)}
    settings["rope_parameters"] = scaled
    if family == "mistral":
        del settings["attention_bias"]
        settings["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
        return ("MistralConfig", "MistralForCausalLM"), settings | {"sliding_window": window, "head_dim": pick(8, 12)}
    if family == "qwen2":
        del settings["attention_bias"]
        return ("Qwen2Config", "Qwen2ForCausalLM"), settings
    if family == "qwen3":
        settings["head_dim"] = pick(8, 12, 16)
        if kind == "default":
            settings |= {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1}
        return ("Qwen3Config", "Qwen3ForCausalLM"), settings
    settings["mlp_bias"] = pick(True, False)
    if family == "smollm3":
        settings["no_rope_layers"] = [0, pick(0, 1), 1]
        return ("SmolLM3Config", "SmolLM3ForCausalLM"), settings
    settings["head_dim"] = pick(8, 12, settings["hidden_size"] // heads)
    return ("LlamaConfig", "LlamaForCausalLM"), settings


def random_tokens(model, seed, length):
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, (2, length), dtype=np.int32)


def states(model, tokens):
    """What `hf.first_drift` compares with; transformers doesn't give the last block's state before the final norm."""
    import torch

    with torch.no_grad():
        said = model(torch.tensor(tokens, dtype=torch.long), output_hidden_states=True)
    embedding, *layers, final = (x.numpy() for x in said.hidden_states)
    named = {f"blocks_{i}": x for i, x in enumerate(layers)}
    return {"embedding": embedding} | named | {"final_states": final, "logits": said.logits.numpy()}


def loss_and_gradient(model, tokens):
    """Mean next-token loss, and its gradient by the names of `model.save_pretrained`."""
    import torch

    ids = torch.tensor(tokens, dtype=torch.long)
    model.zero_grad()
    loss = model(ids, labels=ids).loss
    loss.backward()
    # transformers writes GPT-NeoX's head under its old name.
    old = {"lm_head.weight": "embed_out.weight"} if model.config.model_type == "gpt_neox" else {}
    return float(loss.detach()), {old.get(n, n): p.grad.numpy() for n, p in model.named_parameters()}


def store():
    shutil.rmtree(STORED, ignore_errors=True)
    small = {
        "vocab_size": 64,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    for name, family, fixed in (
        (
            "olmo",
            "olmo",
            {"num_key_value_heads": 1, "clip_qkv": 0.2, "tie_word_embeddings": False, "attention_bias": True},
        ),
        ("olmo2", "olmo2", {"num_key_value_heads": 2, "tie_word_embeddings": False}),
        ("olmo2_tied", "olmo2", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
        ("gpt_neox", "gpt_neox", {"use_parallel_residual": True, "tie_word_embeddings": False}),
        ("gpt_neox_sequential", "gpt_neox", {"use_parallel_residual": False, "tie_word_embeddings": False}),
        ("llama", "llama", {"num_key_value_heads": 1, "tie_word_embeddings": True, "mlp_bias": True}
            | {"attention_bias": True, "head_dim": 12, "rope_parameters": rope | {"rope_type": "llama3", "factor": 8.0}
            | {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}),
        ("mistral", "mistral", {"num_key_value_heads": 2, "tie_word_embeddings": False, "sliding_window": 5}),
        ("qwen2", "qwen2", {"num_key_value_heads": 1, "tie_word_embeddings": False}
            | {"rope_parameters": rope | {"rope_type": "linear", "factor": 4.0}}),
        ("qwen3", "qwen3", {"num_key_value_heads": 1, "tie_word_embeddings": True, "head_dim": 12}
            | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "rope_parameters": rope}),
        ("olmo3", "olmo3", {"num_key_value_heads": 2, "tie_word_embeddings": False, "sliding_window": 5}
            | {"layer_types": ["sliding_attention", "full_attention"], "rope_parameters": {"sliding_attention": rope}
            | {"full_attention": rope | {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}}}),
        ("smollm3", "smollm3", {"num_key_value_heads": 1, "tie_word_embeddings": True, "no_rope_layers": [1, 0]}),
        ("gpt2", "gpt2", {"tie_word_embeddings": True, "activation_function": "gelu_new"}
            | {"max_position_embeddings": 32}),
        ("gemma3", "gemma3", {"num_key_value_heads": 1, "tie_word_embeddings": True, "sliding_window": 5}
            | {"layer_types": ["sliding_attention", "full_attention"], "head_dim": 12, "query_pre_attn_scalar": 20}
            | {"rope_parameters": {"sliding_attention": rope | {"rope_theta": 100.0}, "full_attention": rope}}),
    ):  # fmt: skip
        model = random_model(family, 1, **small | fixed)
        tokens = random_tokens(model, 1, 24)
        loss, gradient = loss_and_gradient(model, tokens)
        expected = {"tokens": tokens, "loss": np.float32(loss).reshape(1), "logits": states(model, tokens)["logits"]}
        model.save_pretrained(STORED / name)
        (STORED / name / "generation_config.json").unlink()
        gradients = {f"gradient/{n}": g for n, g in gradient.items()}
        save_file(expected | gradients, STORED / f"{name}.safetensors")


if __name__ == "__main__":
    store()
