"""The settings that decide a run's numbers, as canonical JSON, and the run's id, which is derived from them.

Ids name folders that are on people's disks, so a field that is added to a configuration changes none of them: it is
left out wherever it has the value at which it does nothing. That is its default, or another value that it declares:

    new_option: float = dataclasses.field(default=0.5, metadata={"neutral": 0.0})
"""

import dataclasses
import hashlib
import json
from collections.abc import Container
from typing import Any

from olmo_jax.config.field import NOT_IDENTITY, Role, declared
from olmo_jax.config.train import TrainConfig

# By class, the fields that enter ids at any value: those that existed when ids were fixed. Nothing may be added, and a
# class that is renamed has to keep its entry, under its new name.
_FIRST_FIELDS = {
    kind: frozenset(names.split())
    for kind, names in {
        "TrainConfig": "name tokens init_seed data_seed tensorboard wandb mapping imported model optimizer data probe "
        "checkpoint mesh compute",
        "OptimizerConfig": "learning_rate weight_decay beta1 beta2 eps clip_norm warmup_fraction warmup_from "
        "final_fraction schedule decay_embeddings decay_norms z_loss",
        "CheckpointConfig": "every log_spaced",
        "MeshConfig": "member data model fsdp",
        "ModelConfig": "vocab_size pad_vocab_to d_model n_layers n_heads d_ff rope_theta norm_eps init_std "
        "compute_dtype n_kv_heads context_length norm norm_at qk_norm clip_qkv parallel mlp attention_bias mlp_bias "
        "positions rotary_fraction tied dropout",
        "ComputeConfig": "attention layers remat microbatches steps_per_call",
        "ArithmeticConfig": "operation modulus train_fraction",
        "DataConfig": "name root corpus tfds_dir files text_field domain_field max_megabytes tokenizer bpe_vocab_size "
        "eos_token train_domains validation_fraction sequence_length batch_size max_epochs arithmetic",
        "TargetConfig": "metrics every centred spectrum",
        "ParametersConfig": "metrics every centred spectrum pattern",
        "TextsConfig": "names every states metrics documents document_tokens tokens drawn points neighbors",
        "ProbeConfig": "every unembedding embedding parameters final_states layers texts documents sets "
        "document_tokens tokens sampled_tokens neighbors",
        "FinetuneConfig": "targets learning_rates seeds tokens batch_size warmup_fraction weight_decay points "
        "train_items task_items item_tokens most_members",
        "DimensionConfig": "points neighbors",
    }.items()
}


def canonical_json(value: Any) -> str:
    """Return the canonical JSON text of a value: sorted keys, no white space, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:12]


def identity_fields(config: Any, without: Container[Role] = ()) -> dict[str, Any]:
    """Return a configuration's values as a nested dict, without the later fields that do nothing: what ids are made of.

    The settings that are stored with a result, to be compared with the configuration later, are made in the same way.

    Args:
      without: roles of settings that are left out, as are sections that have no others.
    """
    first = first_fields(config)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in first and value == neutral_value(field):
            continue
        if not dataclasses.is_dataclass(value):
            if declared(field).role not in without:
                values[field.name] = value
        elif section := identity_fields(value, without):
            values[field.name] = section
    return values


def first_fields(config: Any) -> frozenset[str]:
    """Return the fields of a configuration's class that enter ids at any value."""
    return _FIRST_FIELDS.get(type(config).__name__, frozenset())


def neutral_value(field: dataclasses.Field[Any]) -> Any:
    """Return the value at which a field of a configuration does nothing: the one it declares, or its default."""
    if "neutral" in field.metadata:
        return field.metadata["neutral"]
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def identity(config: TrainConfig, data_fingerprint: str) -> dict[str, Any]:
    """Return the part of a configuration that decides the run's numbers: model, optimiser, schedule, data, seeds.

    For an imported run this is its name, its origin, the model, the text that it is evaluated on, and the number of its
    seed, if it is one of several replicates.
    """
    values = identity_fields(config, without=NOT_IDENTITY)
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
        # Replicates are numbered from 1 (sweeps/histories/hub_import.py); of other runs the seed isn't known.
        seeds = ("init_seed", "data_seed") if config.init_seed else ()
        return {"name": config.name} | {key: values[key] for key in ("imported", "model", "data", *seeds)}
    del values["imported"]
    values["tokens"] = config.total_steps * config.tokens_per_step
    return values


def run_id(config: TrainConfig, data_fingerprint: str) -> str:
    """Return the run's id, `<name>-<hash>`, the same wherever and however the run is carried out."""
    return f"{config.name}-{digest(identity(config, data_fingerprint))}"
