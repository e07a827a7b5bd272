"""Divide long texts at a separator or into blocks."""

import io
from collections.abc import Iterable, Iterator


def divided(chunks: Iterable[str], separator: str) -> Iterator[str]:
    """Yield the parts of a text between separators. The text comes in chunks, and a separator may span two of them."""
    begun: list[str] = []
    rest = ""
    for chunk in chunks:
        *complete, rest = (rest + chunk).split(separator)
        for part in complete:
            yield "".join([*begun, part])
            begun.clear()
        # A separator that ends in the next chunk begins in the last characters of this one.
        kept = max(0, len(rest) - len(separator) + 1)
        begun.append(rest[:kept])
        rest = rest[kept:]
    yield "".join([*begun, rest])


def blocks(text: str, most: int) -> Iterator[str]:
    """Yield the text in blocks of at most `most` characters; the whole text if `most` is 0.

    A block ends at the end of a line, else of a word, if there is one in its second half. Joined, the blocks are the
    text.
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
    r"""Yield a text that comes in chunks with \r\n and \r replaced by \n, so that separators match on every system."""
    decoder = io.IncrementalNewlineDecoder(None, translate=True)
    for chunk in chunks:
        yield decoder.decode(chunk)
    yield decoder.decode("", final=True)
