"""An architecture of Hugging Face's format: its settings, its names of tensors, and the options that it can't express.

What an architecture can express is found by reading its settings back: an option that would be imported with another
value than the model has is one that export would lose. So an option that is added to ModelConfig is refused by every
family, unless it does nothing, until the family reads and writes it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from olmo_jax.config.identity import neutral_value
from olmo_jax.config.model import ModelConfig
from olmo_jax.config.validation import ConfigError, from_config_dict, unknown_key
from olmo_jax.errors import brief

# Our section of config.json, which transformers doesn't read: the rows of the embedding that are tokens, which every
# export has, and options that the architecture has no setting for and that its logits don't depend on beyond rounding.
OURS = "olmo_jax"
ROWS = ("vocab_size", "pad_vocab_to")

_WRONG_KIND = (TypeError, ValueError, AttributeError, ArithmeticError)


@dataclasses.dataclass(frozen=True)
class Family:
    """An architecture: for each of our parameters the tensor that holds it, and for each setting the field.

    Attributes:
      architecture: as config.json names it. model_type: likewise.
      tensors: our path, without the block's "blocks_3/", to the tensor's name; {i} is the block. Where several
        parameters name one tensor it holds them all, in this order.
      fixed: the fields of ModelConfig that have one value in this architecture.
      read: config.json's settings to the other fields of ModelConfig; a field that is in neither does nothing here.
      write: the fields to config.json's settings; None: only read.
      section: fields that are stored in our section of config.json where they aren't at their neutral value.
      per_head: a tensor of several parameters holds them head by head, else one whole after another.
      aliases: other beginnings of names, as some versions wrote them, to those of `tensors`.
      buffers: a regular expression of tensors that are no parameters.
    """

    architecture: str
    model_type: str
    tensors: Mapping[str, str]
    fixed: Mapping[str, Any]
    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]] | None
    section: tuple[str, ...] = ()
    per_head: bool = False
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    buffers: str = r"rotary_emb\.inv_freq$"

    def config(self, settings: Mapping[str, Any], at: str) -> ModelConfig:
        """Return the ModelConfig of a config.json, all rows of its embedding being tokens.

        Raises ConfigError for a setting that our decoder doesn't have; `at` is the file, for the message.
        """
        try:
            fields = self._fields(settings)
        except KeyError as error:
            raise ConfigError(f"{at}: lacks {error}, which {self.architecture} needs; get the file again") from error
        except ConfigError as error:
            raise ConfigError(f"{at}: {error}") from error
        except _WRONG_KIND as error:
            raise ConfigError(f"{at}: has a setting of the wrong kind ({brief(error)}); get the file again") from error
        try:
            return from_config_dict(ModelConfig, fields | self._section(settings, at), at)
        except ConfigError:
            raise
        except _WRONG_KIND as error:  # of numbers beyond all measure
            raise ConfigError(f"{at}: has a setting of the wrong kind ({brief(error)}); get the file again") from error

    def settings(self, config: ModelConfig) -> dict[str, Any]:
        """Return config.json's settings of a model, our section included; for a family that is written."""
        if self.write is None:
            raise ValueError(f"{self.architecture} is read and never written")
        rows = {name: getattr(config, name) for name in ROWS}
        return self.write(config) | {OURS: rows | self.kept(config)}

    def kept(self, config: ModelConfig) -> dict[str, Any]:
        """Return the options, with their values, that only our section of config.json holds."""
        neutral = _neutral_values()
        return {name: getattr(config, name) for name in self.section if getattr(config, name) != neutral[name]}

    def unlike(self, config: ModelConfig) -> dict[str, tuple[Any, Any]]:
        """Return the fields that an export would lose: by name, the model's value and the one that would be imported.

        The family must be one that is written.
        """
        settings = self.settings(config)
        imported = self._fields(settings) | settings[OURS]
        values = _normalized({field.name: getattr(config, field.name) for field in dataclasses.fields(config)})
        return {name: (value, imported[name]) for name, value in values.items() if value != imported[name]}

    def _fields(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Every field of ModelConfig by what the architecture's own settings say, not checked."""
        return _normalized(_neutral_values() | dict(self.fixed) | self.read(settings))

    def _section(self, settings: Mapping[str, Any], at: str) -> dict[str, Any]:
        """The fields in our section of config.json, those of the embedding's rows left out."""
        section = settings.get(OURS) or {}
        if not isinstance(section, dict):
            return {}  # reported where the rows are read
        known = (*ROWS, *self.section)
        for key in section:
            if key not in known:
                message = unknown_key(f"{at}: {OURS}", brief(key), known)
                raise ConfigError(f"{message} If a later version of olmo-jax wrote it, import it with that version")
        return {key: value for key, value in section.items() if key not in ROWS}


def _neutral_values() -> dict[str, Any]:
    return {field.name: neutral_value(field) for field in dataclasses.fields(ModelConfig)}


def _normalized(fields: dict[str, Any]) -> dict[str, Any]:
    """The same model with n_kv_heads = 0 where there are as many heads of keys and values as of queries."""
    return fields | {"n_kv_heads": 0} if fields["n_kv_heads"] in (None, fields["n_heads"]) else fields
