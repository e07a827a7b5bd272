"""What decides a run's numbers, as canonical JSON, and the run's id made of it."""

import dataclasses
import hashlib
import json
from typing import Any

from olmo_jax.config import TrainConfig

# Where things lie and how often they are looked at: none of it reaches a parameter.
_NOT_IDENTITY = {"name", "tensorboard", "wandb", "probe", "checkpoint", "mesh", "mapping", "compute"}


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no white space, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:12]


def identity(config: TrainConfig, data_fingerprint: str) -> dict[str, Any]:
    """The part of a configuration that decides the run's numbers: model, optimiser, schedule, data, seeds.

    Of an imported run it is the model, its name and the text that it is looked at with.
    """
    values = {k: v for k, v in dataclasses.asdict(config).items() if k not in _NOT_IDENTITY}
    # The fingerprint stands for the corpus and the tokenizer; the rest says how the run walks through the tokens.
    values["data"] = {
        "fingerprint": data_fingerprint,
        "train_domains": sorted(set(config.data.train_domains)),
        "sequence_length": config.data.sequence_length,
        "batch_size": config.data.batch_size,
    }
    if config.data.is_arithmetic:
        values["data"]["train_fraction"] = config.data.arithmetic.train_fraction
    if config.imported:
        del values["data"]["batch_size"]
        return {"name": config.name} | {key: values[key] for key in ("imported", "model", "data")}
    del values["imported"]
    values["tokens"] = config.total_steps * config.tokens_per_step
    return values


def run_id(config: TrainConfig, data_fingerprint: str) -> str:
    """`<name>-<hash>`, the same wherever and however the run is carried out."""
    return f"{config.name}-{digest(identity(config, data_fingerprint))}"
