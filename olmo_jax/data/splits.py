"""Which documents training never sees: by a hash of their content, so that equal documents are never on both sides."""

import hashlib


def split_of(text: str, validation_fraction: float) -> str:
    """Which split a document is in, "train" or "validation", by its content alone."""
    return split_of_digest(hashlib.sha256(text.encode()).digest(), validation_fraction)


def split_of_digest(sha256: bytes, validation_fraction: float) -> str:
    """The split of a document with that SHA-256, of its text in UTF-8."""
    share = int.from_bytes(sha256[:8], "big") / 2**64
    return "validation" if share < validation_fraction else "train"
