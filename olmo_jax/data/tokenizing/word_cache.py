r"""Tokens of texts, word by word from a cache: the same as of whole texts, at several times the speed.

GPT-2's byte-level BPE divides a text by a regular expression and tokenises each match by itself:

    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+

A text may therefore be cut wherever a match always ends, whatever stands around it. Between two characters of ASCII
that is so after a letter and before what isn't one; after a digit and before what isn't one; after punctuation and
before white space, a letter or a digit, except where the punctuation ends in an apostrophe ('s); and before the last
character of white space that precedes anything else. Nowhere else is a text cut here, so that words with other
letters, or in scripts without spaces, stay together with what is next to them.
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
# What is kept takes about so much memory: so many bytes, of which each piece takes these and these for each character.
_MOST_BYTES, _BYTES, _BYTES_OF_A_CHARACTER = 64e6, 150, 16


class WordCache:
    """Tokens of texts by a tokenizer for which `suits` holds.

    Args:
      encode: the tokens of each of some texts, uint32.
    """

    def __init__(self, encode: Callable[[Sequence[str]], Sequence[np.ndarray]]):
        self._encode = encode
        self._tokens_of: dict[str, bytes] = {}
        self._bytes = 0

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The tokens of each text, uint32 [length]."""
        pieces = [_PIECES.findall(text) for text in texts]
        tokens_of = self._tokens_of
        new = list(set().union(*pieces).difference(tokens_of))
        tokens_of.update((piece, x.tobytes()) for piece, x in zip(new, self._encode(new), strict=True))
        tokens = [np.frombuffer(b"".join(map(tokens_of.__getitem__, of_text)), np.uint32) for of_text in pieces]
        self._bytes += sum(_BYTES + _BYTES_OF_A_CHARACTER * len(piece) for piece in new)
        if self._bytes > _MOST_BYTES:
            self._tokens_of, self._bytes = {}, 0
        return tokens


def suits(parts: dict[str, Any]) -> bool:
    """Whether a tokenizer.json divides texts by GPT-2's expression and by nothing else, with no special tokens in them.

    Not where text is normalised first, nor where added tokens are looked for in it.
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
