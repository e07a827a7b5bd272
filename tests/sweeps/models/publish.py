"""Folders of revisions of small models, as they are downloaded, and a configuration to import them with."""

import dataclasses
import json

import jax

from olmo_jax import hf, model
from olmo_jax.data.tokenizer import train_bpe

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    from olmo_jax.config import TrainConfig, to_config_dict
    train = to_config_dict(TrainConfig())
    train.data.update(dict(corpus="text_files", files=({corpus!r},), domain_field="domain", train_domains=("prose",),
                           sequence_length=32))
    train.probe.update(dict(documents=10, document_tokens=12))
    evaluation = dict(tokens_per_domain=200, quantize=dict(bits=(4,), methods=('round_to_nearest',)), finetune=dict(
        targets=("code",), learning_rates=(1e-2,), tokens=256, batch_size=4))
    return ConfigDict(dict(train=train, grid=[{{}}], evaluation=evaluation))
"""

SMALL = {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 32, "context_length": 24, "rotary_fraction": 0.5}


def publish(folder, architecture, corpus, steps):
    """Write revisions with random weights, by name with the seed of each, and their tokenizer; return the folder."""
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    tokenizer = train_bpe(texts, 280, "<|endoftext|>")
    folder.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder.parent / "tokenizer.json")
    architecture = dataclasses.replace(architecture, vocab_size=tokenizer.vocab_size)
    for name, seed in steps.items():
        params = model.init(architecture, jax.random.key(seed))
        hf.export_checkpoint(architecture, params, folder / name, tokenizer=folder.parent / "tokenizer.json")
        settings = json.loads((folder / name / "config.json").read_text())
        del settings["olmo_jax"]  # which published models lack
        (folder / name / "config.json").write_text(json.dumps(settings))
    return folder
