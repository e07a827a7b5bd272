"""Division of documents into training and validation, by a hash of their text: equal documents are in one split."""

import hashlib


def split_of(text: str, validation_fraction: float) -> str:
    """Return the split of a document, "train" or "validation", which depends on its text alone."""
    return split_of_digest(hashlib.sha256(text.encode()).digest(), validation_fraction)


def split_of_digest(sha256: bytes, validation_fraction: float) -> str:
    """Return the split of a document, given the SHA-256 of its text in UTF-8."""
    share = int.from_bytes(sha256[:8], "big") / 2**64
    return "validation" if share < validation_fraction else "train"
