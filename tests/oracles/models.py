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
FAMILIES = ("olmo", "olmo2", "gpt_neox")


def random_model(family, seed, **fixed):
    """A model with settings drawn by seed, every parameter away from where it starts, norms and biases included."""
    import torch
    import transformers as t

    rng = np.random.default_rng([seed, FAMILIES.index(family)])
    pick = lambda *values: values[rng.integers(len(values))]  # noqa: E731
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
        kinds = t.GPTNeoXConfig, t.GPTNeoXForCausalLM
    else:
        settings["num_key_value_heads"] = pick(*(n for n in (1, 2, 4, 8) if heads % n == 0))
        if family == "olmo2":
            settings["rms_norm_eps"] = pick(1e-6, 1e-5, 1e-3)
            kinds = t.Olmo2Config, t.Olmo2ForCausalLM
        else:
            settings["clip_qkv"] = pick(None, 0.1, 0.5)
            kinds = t.OlmoConfig, t.OlmoForCausalLM
    kind, architecture = kinds
    torch.manual_seed(seed)
    model = architecture(kind(**settings | fixed)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


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
    ):
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
