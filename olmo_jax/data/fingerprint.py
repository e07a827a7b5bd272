"""Identify the sources of prepared data by their content, wherever they are stored."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from olmo_jax.config.data import DataConfig
from olmo_jax.config.identity import canonical_json
from olmo_jax.data import DataError
from olmo_jax.data.sources import downloads, registry, text_files
from olmo_jax.storage import lfs
from olmo_jax.storage.paths import local, printable

Sources = dict[str, dict[str, str]]


class Fingerprint(NamedTuple):
    """SHA-256 of the corpus and its split, and of the tokenizer; `str` has 12 digits of each, "3fa9…-77b1…"."""

    corpus: str
    tokenizer: str

    def __str__(self) -> str:
        return f"{self.corpus[:12]}-{self.tokenizer[:12]}"


def fingerprint(data: DataConfig) -> Fingerprint:
    """Return what identifies the data that `prepare` would write. Raises DataError for missing sources."""
    return fingerprint_of(sources(data))


def rough_bytes(data: DataConfig) -> float:
    """Return the approximate size of the text in bytes, before anything is prepared; 0 if it is not known."""
    if data.is_arithmetic:
        return 0.0
    if data.corpus == "text_files":
        return sum(text_files.rough_bytes(source, data.text_field) for source in text_files.find(data.files))
    names = registry.parts(data.corpus)
    return sum(registry.rough_bytes(name, data.max_megabytes, data.train_domains) for name in names)


def fingerprint_of(described: Sources) -> Fingerprint:
    """Return the fingerprint of what `sources` returned."""
    corpus, tokenizer = (
        hashlib.sha256(canonical_json(described[half]).encode()).hexdigest() for half in Fingerprint._fields
    )
    return Fingerprint(corpus, tokenizer)


def sources(data: DataConfig, files: Sequence[text_files.Source] | None = None) -> Sources:
    """Return what the two halves of the fingerprint are computed from, by name, so that a change can be named.

    Args:
      files: what text_files.find returns for data.files, if that is known.

    Raises DataError for missing sources.
    """
    if data.is_arithmetic:
        from olmo_jax.data.sources import arithmetic  # imports the tokenizer library, which the others don't need

        return {"corpus": arithmetic.sources(data.arithmetic), "tokenizer": {"words": arithmetic.VERSION}}
    if names := registry.parts(data.corpus):
        by_name = {name: registry.CORPORA[name].sources(data.max_megabytes) for name in names}
        if len(names) == 1:
            corpus = by_name[names[0]]
        else:
            corpus = {f"{name}: {key}": value for name, part in by_name.items() for key, value in part.items()}
    elif data.corpus == "text_files":
        corpus = text_files.sources(
            data.files,
            data.text_field,
            data.domain_field,
            data.separator,
            data.block_characters,
            data.validation_fraction,
            files,
        )
    else:
        from olmo_jax.data.corpus import sources_on_disk  # imports TFDS, which takes half a second

        corpus = sources_on_disk(data)
    return {"corpus": corpus | {"validation_fraction": repr(data.validation_fraction)}, "tokenizer": _tokenizer(data)}


def changes(before: Sources, now: Sources, at_most: int = 4) -> str:
    """Return a line that says what differs: "numpy was 2.4.5, is 2.4.6; ..."; it names `at_most` differences."""
    lines = []
    for half in Fingerprint._fields:
        old, new = before.get(half, {}), now[half]
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                lines.append(f"{key} was {old.get(key, 'absent'):.24}, is {new.get(key, 'absent'):.24}")
    more = f"; and {len(lines) - at_most} more" if len(lines) > at_most else ""
    return "; ".join(lines[:at_most]) + more


def _tokenizer(data: DataConfig) -> dict[str, str]:
    if data.tokenizer == "bpe":
        sampled = {"bpe_megabytes": repr(float(data.bpe_megabytes))} if data.bpe_megabytes else {}
        return {
            "eos_token": data.eos_token,
            "bpe_vocab_size": str(data.bpe_vocab_size),
            "bpe trained on": ", ".join(sorted(set(data.train_domains))) or "all domains",
        } | sampled
    if data.tokenizer in downloads.OLMO_TOKENIZERS:
        name, version, sha256 = downloads.OLMO_WHEEL
        member = downloads.OLMO_TOKENIZERS[data.tokenizer]
        return {"eos_token": data.eos_token, f"{member} of {name} {version}": sha256}
    path = local(data.tokenizer)
    if not path.is_file():
        named = ", ".join(map(repr, downloads.OLMO_TOKENIZERS))
        inside = printable(path / "tokenizer.json")
        problem = f"is a folder; give {inside}, another" if path.is_dir() else "no such file; give a"
        raise DataError(f"data.tokenizer = {data.tokenizer!r}: {problem} tokenizer.json, 'bpe', or {named}")
    if lfs.pointer(path):
        raise DataError(f"data.tokenizer: {printable(path)} {lfs.REMEDY}")
    return {"eos_token": data.eos_token, "tokenizer.json": hashlib.sha256(path.read_bytes()).hexdigest()}
