r"""Tokenise texts word by word with a cache, with the same result as for whole texts and several times as fast.

GPT-2's byte-level BPE divides a text by a regular expression and tokenises each match separately:

    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+

So a text may be cut wherever a match always ends, whatever the context. Between two ASCII characters, that is: after a
letter and before anything but a letter; after a digit and before anything but a digit; after punctuation that doesn't
end in an apostrophe ('s) and before white space, a letter or a digit; and before the last character of white space
that something else follows. Texts are cut only there, so words with non-ASCII letters, or in scripts without spaces,
are not separated from their neighbours.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_SPACE = r"[ \n\t\r]"
_OTHER = r"[^ -~\n\t\r]"  # not ASCII, or a control character
_PUNCTUATION = r"[!-&(-/:-@\[-`{-~]"  # without the apostrophe
_PIECES = re.compile(
    rf"{_SPACE}?(?:[A-Za-z]++(?!{_OTHER})|[0-9]++(?!{_OTHER})|{_PUNCTUATION}++(?!{_OTHER}|'))"
    rf"|{_SPACE}+(?={_SPACE}[!-~])"
    rf"|(?s:.+?)(?:(?<=[!-~])(?={_SPACE})|\Z)"
)
# The most memory that the cache may take, and estimates of what each piece takes: a constant, and more per character.
_MOST_BYTES, _BYTES_PER_PIECE, _BYTES_PER_CHARACTER = 64e6, 150, 16


class WordCache:
    """Encodes texts with a tokenizer for which `suits` is true.

    Args:
      encode: a function that returns the tokens of each text in a list, uint32, without a cache.
    """

    def __init__(self, encode: Callable[[Sequence[str]], Sequence[np.ndarray]]):
        self._encode = encode
        self._tokens_of: dict[str, bytes] = {}
        self._bytes = 0

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the tokens of each text, uint32 [length]."""
        pieces = [_PIECES.findall(text) for text in texts]
        tokens_of = self._tokens_of
        new = list(set().union(*pieces).difference(tokens_of))
        tokens_of.update((piece, x.tobytes()) for piece, x in zip(new, self._encode(new), strict=True))
        tokens = [np.frombuffer(b"".join(map(tokens_of.__getitem__, of_text)), np.uint32) for of_text in pieces]
        self._bytes += sum(_BYTES_PER_PIECE + _BYTES_PER_CHARACTER * len(piece) for piece in new)
        if self._bytes > _MOST_BYTES:
            self._tokens_of, self._bytes = {}, 0
        return tokens


def suits(parts: dict[str, Any]) -> bool:
    """Return whether a tokenizer.json divides texts by GPT-2's expression and in no other way.

    It doesn't if it normalises text first, or looks for added tokens in it.
    """
    first = parts["pre_tokenizer"] or {}
    return (
        parts["model"]["type"] == "BPE"
        and not parts["model"].get("dropout")
        and first.get("type") == "ByteLevel"
        and first.get("use_regex") is True
        and first.get("add_prefix_space") is False
        and parts["normalizer"] is None
        and all(token["special"] for token in parts["added_tokens"])
    )
