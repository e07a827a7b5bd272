"""Cut words that are too long to train a BPE on: DNA, base64 or lines of hyphens, which count as one word each.

The time to train a BPE grows with the square of a word's length.
"""

import re
from collections.abc import Iterator

LONGEST = 10_000

_PART = LONGEST // 2
# GPT-2's words, without the space that may precede one.
_WORD = re.compile(r"[^\W\d_]+|\d+|\s+|(?:[^\w\s]|_)+")


def bounded(text: str) -> Iterator[str]:
    """Yield a text, in several parts if it has words of more than LONGEST characters: these are cut."""
    start = 0
    if _may_have_long_words(text):
        for word in _WORD.finditer(text):
            for cut in range(word.start() + LONGEST, word.end(), LONGEST):
                yield text[start:cut]
                start = cut
    yield text[start:]


def _may_have_long_words(text: str) -> bool:
    """Return whether an aligned part of the text is nothing but white space, or has none.

    Otherwise no word is longer than LONGEST, since such a word contains a whole aligned part.
    """
    parts = (text[at : at + _PART] for at in range(0, len(text) - _PART + 1, _PART))
    return any(part.isspace() or part.split(None, 1) == [part] for part in parts)
