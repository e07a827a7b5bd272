"""Read the settings in a Hugging Face folder: config.json, or AI2's config.yaml, and tokenizer.json."""

import dataclasses
import functools
import json
import re
import reprlib
from collections.abc import Mapping
from typing import Any

import yaml
from etils import epath

from olmo_jax.config.model import ModelConfig
from olmo_jax.config.validation import ConfigError
from olmo_jax.console import say
from olmo_jax.errors import brief
from olmo_jax.hf import gguf as hf_gguf
from olmo_jax.hf.families.registry import AI2_OLMO, FAMILIES, OLMO
from olmo_jax.hf.family import OURS, ROWS, Family
from olmo_jax.storage import gguf, lfs
from olmo_jax.weights import WeightsError

TOKENIZER = "tokenizer.json"
_END_OF_TEXT = "<|endoftext|>"


def read_config(folder: epath.Path, tokenizer: epath.Path | None = None) -> tuple[Family, ModelConfig]:
    """Return the architecture and configuration of a folder; embedding rows beyond the tokenizer's are padding.

    `tokenizer` is a tokenizer.json; None for the folder's own, if it has one. Raises WeightsError and ConfigError as
    `import_checkpoint` does.
    """
    settings, file = read_settings(folder)
    family = _family(settings, file)
    config = family.config(settings, str(file))
    rows, tokens = config.padded_vocab_size, None
    if tokenizer is None and (folder / TOKENIZER).exists():
        tokenizer = folder / TOKENIZER
    if tokenizer is not None:
        tokens = tokens_of(tokenizer)
        if tokens > rows:
            raise ConfigError(
                f"{tokenizer}: has {tokens} tokens, but the model's vocabulary has {rows}; they don't belong together, "
                "so download both from one source"
            )
    ours = settings.get(OURS) or {}
    if not isinstance(ours, dict) or not all(type(ours.get(k, 1)) is int and 0 < ours.get(k, 1) <= rows for k in ROWS):
        raise ConfigError(
            f"{file}: {OURS} = {reprlib.repr(ours)}: vocab_size and pad_vocab_to must be integers from 1 to {rows}; "
            f"remove {OURS} from the file"
        )
    vocabulary = ours.get("vocab_size") or tokens or config.vocab_size
    candidates = (ours.get("pad_vocab_to") or 1, 1, 128)
    pad = next((pad for pad in candidates if -(-vocabulary // pad) * pad == rows), rows)
    return family, dataclasses.replace(config, vocab_size=vocabulary, pad_vocab_to=pad)


def read_settings(folder: epath.Path) -> tuple[dict[str, Any], epath.Path]:
    """Return config.json, the model section of AI2's config.yaml, or a GGUF file's equivalent, and the file's path.

    Raises WeightsError and ConfigError.
    """
    if folder.suffix == gguf.SUFFIX and folder.is_file():
        return hf_gguf.settings_of(folder), folder
    if not folder.is_dir():
        problem = "is a file; give the folder that contains it" if folder.exists() else "no such folder; download one"
        raise WeightsError(f"{folder}: {problem}, with config.json and .safetensors")
    file = folder / "config.json"
    if not file.exists():
        file = folder / "config.yaml"
    if not file.exists():
        raise WeightsError(f"{folder}: has no config.json; give a folder saved by transformers")
    try:
        text = file.read_bytes()
        settings = json.loads(text) if file.suffix == ".json" else yaml.load(text, _Yaml)["model"]
    except (*_PARSING_ERRORS, yaml.YAMLError) as error:
        raise _unreadable(file, "isn't a model's configuration", error) from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{file}: isn't a model's configuration but {type(settings).__name__}; download it again")
    return settings, file


class _Yaml(yaml.SafeLoader):
    """A YAML loader with the numbers of YAML 1.2 and of AI2's reader: 1e6 is a number, which in YAML 1.1 is text."""


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)

# Exceptions that JSON and YAML raise for damaged text.
_PARSING_ERRORS = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


def _unreadable(file: epath.Path, what: str, cause: Exception) -> ConfigError:
    return ConfigError(f"{file}: {lfs.REMEDY if lfs.pointer(file) else f'{what} ({brief(cause)}); download it again'}")


def tokens_of(file: epath.Path) -> int:
    """Return one more than the largest token id of a tokenizer.json; raises ConfigError if the file isn't one."""
    tokens = _backend(file).get_vocab(with_added_tokens=True).values()
    if not tokens:
        raise ConfigError(f"{file}: contains no tokens; download it again")
    return max(tokens) + 1


def eos_of(folder: epath.Path, tokenizer: epath.Path) -> str:
    """Return the token that stands between documents: config.json's eos_token_id, or bos_token_id.

    It is the latter if the folder's tokenizer_config.json, or the GGUF file, says that a text begins with it
    (add_bos_token), since each document is read after this token. Raises ConfigError if that isn't a token.
    """
    settings, file = read_settings(folder)
    key = "bos_token_id" if _adds_bos(settings, folder) else "eos_token_id"
    eos = settings.get(key)
    number = eos[0] if isinstance(eos, list) and eos else eos
    known = type(number) is int and 0 <= number < tokens_of(tokenizer)
    backend = _backend(tokenizer)
    token = backend.id_to_token(number) if known else None
    # A known mistake of AI2's trainer, which transformers' converter of its checkpoints corrects.
    wrong = number == 0 and token != _END_OF_TEXT and _family(settings, file) in (OLMO, AI2_OLMO)
    if wrong and backend.token_to_id(_END_OF_TEXT) is not None:
        _say_once(
            f"{file}: eos_token_id = 0 is {token!r}, a known mistake; using {_END_OF_TEXT}, as transformers' "
            "converter does"
        )
        return _END_OF_TEXT
    if token is None:
        raise ConfigError(
            f"{file}: {key} = {reprlib.repr(eos)} isn't the id of a token in {tokenizer}; set it to one that is"
        )
    return token


def _adds_bos(settings: Mapping[str, Any], folder: epath.Path) -> bool:
    file = folder / "tokenizer_config.json"
    if folder.is_dir() and file.exists():
        try:
            settings = json.loads(file.read_bytes())
        except _PARSING_ERRORS as error:
            raise _unreadable(file, "isn't a tokenizer's configuration", error) from error
    return isinstance(settings, dict) and settings.get("add_bos_token") is True


_say_once = functools.cache(say)


def check_tokenizer(file: epath.Path, vocab_size: int, eos_token: str) -> int:
    """Return the id of `eos_token`; raises ConfigError without it, or with more than `vocab_size` tokens."""
    if (tokens := tokens_of(file)) > vocab_size:
        raise ConfigError(
            f"{file}: has {tokens} tokens, but the model's vocabulary has {vocab_size}; give the model's own "
            "tokenizer.json"
        )
    number = _backend(file).token_to_id(eos_token)
    if number is None:
        raise ConfigError(f"{file}: has no token {eos_token!r}; give its end-of-text token")
    return number


def _family(settings: Mapping[str, Any], file: epath.Path) -> Family:
    if {"d_model", "activation_type"} <= settings.keys():  # AI2's trainer, under several architecture names
        return AI2_OLMO
    architectures = settings.get("architectures") or []
    named = [*(architectures if isinstance(architectures, list) else [architectures]), settings.get("model_type") or ""]
    for family in FAMILIES:
        if family.architecture in named or family.model_type in named:
            return family
    known = ", ".join(family.architecture for family in FAMILIES)
    raise ConfigError(f"{file}: the architecture {_short(named[0])} isn't known; known are: {known}")


def _short(name: object) -> str:
    return (
        (name if len(name) < 80 else reprlib.repr(name)) or "(none named)"
        if isinstance(name, str)
        else reprlib.repr(name)
    )


def _backend(file: epath.Path) -> Any:
    from tokenizers import Tokenizer

    content = file.read_bytes()
    try:
        return Tokenizer.from_buffer(content)
    except Exception as error:  # noqa: BLE001  the binding raises bare Exception
        raise _unreadable(file, "isn't a tokenizer.json", error) from error
