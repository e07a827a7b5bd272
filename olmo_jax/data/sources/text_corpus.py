"""The corpus "text_files" in portions, with keys that sort its documents as a TFDS data set of them would.

Lines of JSON are parsed where a portion is read, so that one process can read files fast enough for many others.
"""

import functools
import io
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from olmo_jax.config.data import DataConfig
from olmo_jax.data.sources import text_files
from olmo_jax.data.sources.example import Example
from olmo_jax.data.sources.readers.lines import opened
from olmo_jax.data.sources.text_files import Source
from olmo_jax.data.tokenizing.portions import AT_ONCE, Content, Document, Portion, Tally, in_parts, keys

_SAMPLED_FILES = 8


class _Examples(NamedTuple):
    """A portion of documents of a file that have been read."""

    file: int
    examples: Sequence[Example]

    def content(self) -> Content:
        return _content(self.file, self.examples)


class _Lines(NamedTuple):
    """A portion of whole lines of JSON; the first is line `number` of the file and begins at byte `offset`."""

    file: int
    source: Source
    fields: tuple[str, str]
    block_characters: int
    lines: bytes
    number: int
    offset: int
    last: bool

    def content(self) -> Content:
        counted = text_files.Counted()
        stream = io.BytesIO(self.lines)
        examples = list(
            text_files.examples_of_lines(
                self.source, stream, *self.fields, self.block_characters, counted, self.number, self.offset
            )
        )
        tally = Tally(self.source, counted.rows, counted.passed_over, len(examples), self.last)
        return _content(self.file, examples, tally)


def _content(file: int, examples: Sequence[Example], tally: Tally | None = None) -> Content:
    # Files in two folders may have the same name; the number keeps their keys distinct.
    names = (f"{file}/{example.id}" for example in examples)
    return Content([Document(example.domain, example.text) for example in examples], keys(names), tally)


class TextCorpus:
    """The corpus of the documents in text files; `files` are what text_files.find returns for data.files."""

    def __init__(self, data: DataConfig, files: Sequence[Source]):
        self._files, self._fields = files, (data.text_field, data.domain_field)
        self._separator, self._block_characters = data.separator, data.block_characters

    def portions(self, note: Callable[[str], None]) -> Iterator[Portion]:
        """Yield all portions, file after file.

        Args:
          note: called with a line about skipped rows that the portions' tallies don't count.

        Raises DataError for text that can't be read.
        """
        for number, source in enumerate(self._files):
            if text_files.is_json(source):
                yield from self._lines(number, source)
            else:
                examples = text_files.examples(source, *self._fields, self._separator, self._block_characters, note)
                yield from map(functools.partial(_Examples, number), in_parts(examples))

    def rough_bytes(self) -> float:
        """Return the approximate bytes of text, estimated from a few of the files."""
        sampled = self._files[:: -(-len(self._files) // _SAMPLED_FILES)]
        text = sum(text_files.rough_bytes(source, self._fields[0]) for source in sampled)
        return text * _on_disk(self._files) / max(1, _on_disk(sampled))

    def _lines(self, file: int, source: Source) -> Iterator[_Lines]:
        with opened(source.path, source.name) as (stream, _):
            number, offset, last = 1, 0, False
            while not last:
                lines = stream.read(AT_ONCE)
                if not lines.endswith(b"\n"):
                    lines += stream.readline()
                last = not stream.peek(1)
                yield _Lines(file, source, self._fields, self._block_characters, lines, number, offset, last)
                number += lines.count(b"\n")
                offset += len(lines)


class Counting:
    """Sums the tallies of the portions of each file; portions are added in order.

    Args:
      note: called with a line about the skipped rows of a file.
    """

    def __init__(self, text_field: str, note: Callable[[str], None]):
        self._text_field, self._note = text_field, note
        self._passed_over = self._documents = 0

    def add(self, tally: Tally | None) -> None:
        """Add the tally of the next portion. Raises DataError for a file that ends without a document."""
        if tally is None:
            return
        self._passed_over += tally.passed_over
        self._documents += tally.documents
        if not tally.last:
            return
        if self._passed_over:
            self._note(text_files.on_nulls(tally.source, "line", self._text_field, self._passed_over, tally.rows))
        if not self._documents:
            raise text_files.empty(tally.source)
        self._passed_over = self._documents = 0


def _on_disk(files: Sequence[Source]) -> int:
    return sum(source.path.stat().st_size for source in files)
