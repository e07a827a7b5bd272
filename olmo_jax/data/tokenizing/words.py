"""Words too long to learn a vocabulary from: DNA, base64 and rules of hyphens, of which a tokenizer makes one word.

The time that training a BPE takes grows with the square of a word's length.
"""

import re
from collections.abc import Iterator

LONGEST = 10_000

_PART = LONGEST // 2
# GPT-2's words, but for the space that may precede one.
_WORD = re.compile(r"[^\W\d_]+|\d+|\s+|(?:[^\w\s]|_)+")


def bounded(text: str) -> Iterator[str]:
    """A text, in several parts where it has words of more than LONGEST characters, which are cut; else as it is."""
    start = 0
    if _may_have_long_words(text):
        for word in _WORD.finditer(text):
            for cut in range(word.start() + LONGEST, word.end(), LONGEST):
                yield text[start:cut]
                start = cut
    yield text[start:]


def _may_have_long_words(text: str) -> bool:
    """Whether one of the aligned parts is all white space or has none: a longer word contains one of them whole."""
    parts = (text[at : at + _PART] for at in range(0, len(text) - _PART + 1, _PART))
    return any(part.isspace() or part.split(None, 1) == [part] for part in parts)
