"""An architecture of Hugging Face's format: its settings, its tensor names, and the options that it can't express.

Which options an architecture can express is determined by reading its settings back: if an option would be imported
with a different value, export would lose it. So every family refuses a new option of ModelConfig, unless it has its
neutral value, until the family reads and writes it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from olmo_jax.config.identity import neutral_value
from olmo_jax.config.model import ModelConfig
from olmo_jax.config.validation import ConfigError, from_config_dict, unknown_key
from olmo_jax.errors import brief

# Our section of config.json, which transformers doesn't read: in every export, the number of embedding rows that are
# tokens, and options without a setting in the architecture that change logits by no more than rounding.
OURS = "olmo_jax"
ROWS = ("vocab_size", "pad_vocab_to")

_WRONG_TYPE = (TypeError, ValueError, AttributeError, ArithmeticError)


@dataclasses.dataclass(frozen=True)
class Family:
    """An architecture: the tensor that holds each of our parameters, and the field of each setting.

    Attributes:
      architecture, model_type: the names in config.json.
      tensors: maps our path, without the block's "blocks_3/", to the name of the tensor; {i} is the block. If several
        parameters map to one tensor, it holds them all, in this order.
      fixed: the fields of ModelConfig that have one value in this architecture.
      read: converts config.json's settings to the other fields of ModelConfig; a field that neither `fixed` nor
        `read` sets has no effect in this architecture.
      write: converts the fields to config.json's settings; None if the family can only be read.
      section: fields that are stored in our section of config.json unless they have their neutral value.
      per_head: a tensor of several parameters interleaves them by head; otherwise it concatenates them.
      stored_in_out: matrices of the blocks are stored as [in, out], as ours are; otherwise as [out, in].
      aliases: maps prefixes of names that some versions wrote to those in `tensors`.
      buffers: a regular expression that matches tensors that aren't parameters.
    """

    architecture: str
    model_type: str
    tensors: Mapping[str, str]
    fixed: Mapping[str, Any]
    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]] | None
    section: tuple[str, ...] = ()
    per_head: bool = False
    stored_in_out: bool = False
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    buffers: str = r"rotary_emb\.inv_freq$"

    def config(self, settings: Mapping[str, Any], at: str) -> ModelConfig:
        """Return the ModelConfig of a config.json, counting all rows of the embedding as tokens.

        Raises ConfigError for a setting that our decoder doesn't have; `at` is the file, for the message.
        """
        try:
            fields = self._fields(settings)
        except KeyError as error:
            raise ConfigError(f"{at}: lacks {error}, which {self.architecture} needs; download it again") from error
        except ConfigError as error:
            raise ConfigError(f"{at}: {error}") from error
        except _WRONG_TYPE as error:
            raise ConfigError(f"{at}: has a setting of the wrong type ({brief(error)}); download it again") from error
        try:
            return from_config_dict(ModelConfig, _nested(fields) | self._section(settings, at), at)
        except ConfigError:
            raise
        except _WRONG_TYPE as error:  # numbers that are too large
            raise ConfigError(f"{at}: has a setting of the wrong type ({brief(error)}); download it again") from error

    def settings(self, config: ModelConfig) -> dict[str, Any]:
        """Return config.json's settings of a model, including our section; raises ValueError if `write` is None."""
        if self.write is None:
            raise ValueError(f"{self.architecture} can be read but not written")
        rows = {name: getattr(config, name) for name in ROWS}
        return self.write(config) | {OURS: rows | self.kept(config)}

    def kept(self, config: ModelConfig) -> dict[str, Any]:
        """Return the options, with their values, that are stored only in our section of config.json."""
        neutral = _neutral_values()
        return {name: getattr(config, name) for name in self.section if getattr(config, name) != neutral[name]}

    def unlike(self, config: ModelConfig) -> dict[str, tuple[Any, Any]]:
        """Return the fields that an export would lose: by name, the model's value and the one that would be imported.

        `write` must not be None.
        """
        settings = self.settings(config)
        imported = self._fields(settings) | settings[OURS]
        values = _normalized({field.name: getattr(config, field.name) for field in dataclasses.fields(config)})
        return {name: (value, imported[name]) for name, value in values.items() if value != imported[name]}

    def _fields(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return every field of ModelConfig as the architecture's own settings imply, unchecked."""
        return _normalized(_neutral_values() | dict(self.fixed) | self.read(settings))

    def _section(self, settings: Mapping[str, Any], at: str) -> dict[str, Any]:
        """Return the fields in our section of config.json, without those of the embedding's rows."""
        section = settings.get(OURS) or {}
        if not isinstance(section, dict):
            return {}  # read_config reports it
        known = (*ROWS, *self.section)
        for key in section:
            if key not in known:
                message = unknown_key(f"{at}: {OURS}", brief(key), known)
                raise ConfigError(f"{message} (if a later version of olmo-jax wrote it, import it with that version)")
        return {key: value for key, value in section.items() if key not in ROWS}


def _neutral_values() -> dict[str, Any]:
    return {field.name: neutral_value(field) for field in dataclasses.fields(ModelConfig)}


def _nested(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields with sections as mappings."""
    return {key: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for key, v in fields.items()}  # type: ignore[arg-type]


def _normalized(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields, with the neutral value in place of every value that means the same."""
    width = fields["head_width"] or fields["d_model"] // fields["n_heads"]
    same = {
        "n_kv_heads": (None, fields["n_heads"]),
        "head_width": (fields["d_model"] / fields["n_heads"],),
        "score_width": (width,),
        "sliding_rope_theta": (fields["rope_theta"],),
        "out_bias": () if fields["attention_bias"] else (False,),
        "attention_pattern": (("full",) * len(fields["attention_pattern"]),),
    }
    neutral = _neutral_values()
    return fields | {name: neutral[name] for name, values in same.items() if fields[name] in values}
