"""Long texts in pieces: divided at a separator, or cut into blocks."""

import io
from collections.abc import Iterable, Iterator


def divided(chunks: Iterable[str], separator: str) -> Iterator[str]:
    """What lies between the separators of a text that comes in chunks; a separator may lie across two of them."""
    begun: list[str] = []
    rest = ""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(separator)
        for piece in whole:
            yield "".join([*begun, piece])
            begun.clear()
        # A separator that ends in the next chunk begins in the last characters of this one.
        kept = max(0, len(rest) - len(separator) + 1)
        begun.append(rest[:kept])
        rest = rest[kept:]
    yield "".join([*begun, rest])


def blocks(text: str, most: int) -> Iterator[str]:
    """A text cut into blocks of at most `most` characters, joined it is the text again; whole where `most` is 0.

    A block ends with a line, else with a word, where one ends in its second half.
    """
    start = 0
    while most and len(text) - start > most:
        end = start + most
        halfway = start + (most + 1) // 2
        cut = text.rfind("\n", halfway, end)
        if cut < 0:
            cut = text.rfind(" ", halfway, end)
        end = cut + 1 if cut >= 0 else end
        yield text[start:end]
        start = end
    yield text[start:]


def with_line_feeds(chunks: Iterable[str]) -> Iterator[str]:
    r"""A text that comes in chunks, with each \r\n and \r made \n, so that a separator is the same on every system."""
    decoder = io.IncrementalNewlineDecoder(None, translate=True)
    for chunk in chunks:
        yield decoder.decode(chunk)
    yield decoder.decode("", final=True)
