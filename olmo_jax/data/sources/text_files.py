"""The user's text files as examples: .txt, .jsonl and .json, also compressed (.gz, .zst), and .parquet."""

import codecs
import collections
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from olmo_jax.data import DataError
from olmo_jax.data.sources.example import Example
from olmo_jax.data.sources.readers import lines, parquet, rows
from olmo_jax.data.sources.readers.lines import PACKED, opened
from olmo_jax.data.sources.readers.named_files import named_files
from olmo_jax.data.sources.readers.pieces import blocks, divided, with_line_feeds
from olmo_jax.data.splits import split_of_digest
from olmo_jax.storage import lfs
from olmo_jax.storage.paths import printable

VERSION = "1.0.0"
DEFAULT_DOMAIN = "text"
SUFFIXES = (*(kind + packed for kind in (".txt", ".jsonl", ".json") for packed in PACKED), ".parquet")

# Links to files of these kinds have the target's name in the fingerprint, as in the first versions.
_NAMED_BY_TARGET = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_AT_ONCE = 1 << 20
_SAMPLE_BYTES = 8_000_000
_NUL_RUN = "\0" * 64
_MARKS = (codecs.BOM_UTF8, *(mark for mark, _ in lines.MARKS))
_USUAL_SEPARATOR = "<|endoftext|>"


class Source(NamedTuple):
    """A file.

    Attributes:
      name: without the folder, which doesn't enter the fingerprint. Bytes that aren't UTF-8 are escaped.
      sha256: of the file as it is on disk.
      path: as the user gives it; it may be a link.
    """

    name: str
    sha256: str
    path: Path

    def __str__(self) -> str:
        return printable(self.path)


@dataclasses.dataclass
class Counted:
    """Counts of a file's rows: the number of the last row read, and the rows skipped since their text is null."""

    rows: int = 0
    passed_over: int = 0


def kind(name: str) -> str:
    """Return the one of SUFFIXES that a name ends in, in upper or lower case; "" for none."""
    return next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")


def find(patterns: Sequence[str]) -> list[Source]:
    """Return the files that paths and globs (with `**` and `~`) match, each once, sorted by name, then by content.

    A link counts as its target. Raises DataError for a pattern that matches no file, a folder, a broken link, a Git LFS
    pointer, and a file without one of SUFFIXES.
    """
    files: dict[Path, tuple[str, Path]] = {}
    for pattern in patterns:
        for path in named_files(pattern, kind):
            target = path.resolve()
            name = target.name if target.name.endswith(_NAMED_BY_TARGET) else path.name
            files[target] = min(files.get(target, (name, path)), (name, path))
    for name, path in files.values():
        if not kind(name):
            raise DataError(f"{printable(path)}: isn't .txt, .jsonl or .json (plain, .gz or .zst), nor .parquet; "
                            "convert it, or narrow data.files")  # fmt: skip
        if lfs.pointer(path):
            raise DataError(f"{printable(path)}: {lfs.REMEDY}")
    return sorted(Source(_encodable(name), _sha256(path), path) for name, path in files.values())


def sources(
    patterns: Sequence[str],
    text_field: str,
    domain_field: str,
    separator: str = "",
    block_characters: int = 0,
    validation_fraction: float | None = None,
    files: Sequence[Source] | None = None,
) -> dict[str, str]:
    """Return what identifies the corpus: names and hashes of the files, and how they are read.

    Args:
      validation_fraction: if given, the files are checked for documents in both splits, as far as their hashes show.
      files: what `find` returns for the patterns, if that is known; it reads all files.

    Raises DataError as `find`, and for files whose documents are all in one split.
    """
    files = find(patterns) if files is None else files
    if validation_fraction is not None and not separator and not block_characters:
        _check_splits(files, validation_fraction)
    described = {"text_files": VERSION, "text_field": text_field, "domain_field": domain_field}
    if separator:
        described["document_separator"] = ascii(separator)[1:-1]  # on one line, for messages
    if block_characters:
        described["block_characters"] = str(block_characters)
    for number, source in enumerate(files):
        described[f"{number:06d} {source.name}"] = source.sha256
    return described


def examples(
    source: Source,
    text_field: str,
    domain_field: str,
    separator: str = "",
    block_characters: int = 0,
    note: Callable[[str], None] = lambda line: None,
) -> Iterator[Example]:
    """Yield the documents of one file: a whole .txt or its parts between separators, lines of JSON, rows of a .parquet.

    Documents of only white space and rows whose text is null are skipped. The domain is "text" for a .txt, and
    for all files if `domain_field` is "". Nested fields are named with dots: "meta.source".

    Args:
      separator: divides a .txt into documents; "" makes it one document.
      block_characters: longer documents are cut into parts of at most this many characters; 0 leaves them whole.
      note: called with a line about skipped rows.

    Raises DataError, with the line or row, for text that can't be read, a missing field, a value that isn't text, and a
    file without a document.
    """
    if kind(source.name).startswith(".txt"):
        documents = _txt(source, separator)
    else:
        documents = _rows(source, text_field, domain_field, note)
    without_text = True
    for example in _in_blocks(documents, block_characters):
        without_text = False
        yield example
    if without_text:
        raise empty(source)


def examples_of_lines(
    source: Source,
    stream: Iterable[bytes],
    text_field: str,
    domain_field: str,
    block_characters: int,
    counted: Counted,
    first: int = 1,
    offset: int = 0,
) -> Iterator[Example]:
    """Yield the documents in lines of a file of JSON, as `examples` does; there may be none.

    Args:
      stream: the lines, uncompressed.
      counted: is updated with the counts of the rows.
      first: number of the first line in the file. offset: of its first byte in the file.
    """
    numbered = rows.json_rows(stream, str(source), first, offset)
    return _in_blocks(_documents(numbered, "line", source, text_field, domain_field, counted), block_characters)


def is_json(source: Source) -> bool:
    """Return whether a file holds lines of JSON, compressed or not."""
    return kind(source.name).startswith(".json")


def empty(source: Source) -> DataError:
    """Return the error for a file without a document."""
    return DataError(f"{source}: holds no text; fill it or leave it out of data.files")


def on_nulls(source: Source, word: str, text_field: str, passed_over: int, number: int) -> str:
    """Return a line about the rows that are skipped since their text is null, of `number` rows."""
    return f"{source}: skipped {passed_over:,} of {number:,} {word}s, since their field {text_field!r} is null"


def rough_bytes(source: Source, text_field: str) -> float:
    """Return the approximate bytes of text in a file, uncompressed and without other fields; exact for small files.

    Raises DataError for text that can't be read.
    """
    if kind(source.name) == ".txt":
        return float(source.path.stat().st_size)
    if kind(source.name) == ".parquet":
        size, number = _sampled(enumerate(parquet.rows(source.path, [text_field]), start=1), "row", source, text_field)
        return size * parquet.count(source.path) / max(1, number)
    with opened(source.path, source.name) as (stream, file):
        if kind(source.name).startswith(".txt"):
            size = len(stream.read(_SAMPLE_BYTES))
        else:
            size, _ = _sampled(rows.json_rows(stream, str(source)), "line", source, text_field)
        read = file.tell()
    return size * source.path.stat().st_size / max(1, read)


def _sampled(
    numbered: Iterable[tuple[int, dict[str, Any]]], word: str, source: Source, text_field: str
) -> tuple[int, int]:
    """Return the bytes of text of the first rows, and the number of the last of them."""
    size, number = 0, 0
    for number, row in numbered:
        size += len((rows.text(row, text_field, f"{source}: {word} {number}") or "").encode())
        if size >= _SAMPLE_BYTES:
            break
    return size, number


def _txt(source: Source, separator: str) -> Iterator[Example]:
    with opened(source.path, source.name) as (stream, _):
        if not separator:
            text = rows.decoded(stream.read(), f"{source}:")
            yield Example(source.name, DEFAULT_DOMAIN, _without_damage(text, source))
            return
        chunks = with_line_feeds(_chunks(stream, source))
        for number, text in enumerate(divided(chunks, separator), start=1):
            yield Example(f"{source.name}:{number}", DEFAULT_DOMAIN, text)


def _chunks(stream: IO[bytes], source: Source) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    offset = 0
    while True:
        raw = stream.read(_AT_ONCE)
        try:
            yield _without_damage(decoder.decode(raw, final=not raw), source)
        except UnicodeDecodeError as e:
            at = offset + len(raw) - len(e.object) + e.start
            rows.decoded(e.object[e.start :], f"{source}:", at)  # raises DataError
        offset += len(raw)
        if not raw:
            return


def _without_damage(text: str, source: Source) -> str:
    if _NUL_RUN in text:
        raise DataError(f"{source}: holds a run of NUL bytes, as after a power cut; fetch it again")
    return text


def _in_blocks(documents: Iterable[Example], block_characters: int) -> Iterator[Example]:
    for document in documents:
        parts = [part for part in blocks(document.text, block_characters) if part.strip()]
        for number, part in enumerate(parts, start=1):
            yield document._replace(id=f"{document.id}:{number}", text=part) if block_characters else document


def _rows(source: Source, text_field: str, domain_field: str, note: Callable[[str], None]) -> Iterator[Example]:
    fields, counted = (text_field, domain_field), Counted()
    if kind(source.name) == ".parquet":
        word = "row"
        numbered = enumerate(parquet.rows(source.path, [field for field in fields if field]), start=1)
        yield from _documents(numbered, word, source, *fields, counted)
    else:
        word = "line"
        with opened(source.path, source.name) as (stream, _):
            yield from _documents(rows.json_rows(stream, str(source)), word, source, *fields, counted)
    if counted.passed_over:
        note(on_nulls(source, word, text_field, counted.passed_over, counted.rows))


def _documents(
    numbered: Iterable[tuple[int, dict[str, Any]]],
    word: str,
    source: Source,
    text_field: str,
    domain_field: str,
    counted: Counted,
) -> Iterator[Example]:
    for number, row in numbered:
        counted.rows = number
        at = f"{source}: {word} {number}"
        text = rows.text(row, text_field, at)
        if text is None:
            counted.passed_over += 1
            continue
        domain = rows.text(row, domain_field, at) if domain_field else DEFAULT_DOMAIN
        if domain is None:
            raise DataError(f"{at}: field {domain_field!r} is null; give the row a domain")
        yield Example(f"{source.name}:{number}", domain, text)


def _check_splits(files: Sequence[Source], validation_fraction: float) -> None:
    """Raise DataError if .txt files, each one document, are all in one split.

    A document has the same hash as its file, except where the file begins with a byte-order mark.
    """
    if any(kind(source.name) != ".txt" for source in files):
        return
    if len({source.sha256 for source in files}) > 1:
        splits = {split_of_digest(bytes.fromhex(source.sha256), validation_fraction) for source in files}
        if len(splits) > 1 or any(_first_bytes(source).startswith(_MARKS) for source in files):
            return
        problem = (
            f"data.files: each of the {len(files)} .txt files is one document, and all are in the {splits.pop()} split"
        )
    else:
        problem = f"data.files: {files[0]} is one document, which can't be split into training and validation"
    for source in files:  # an error in reading a file comes first
        collections.deque(examples(source, "", ""), maxlen=0)
    separator = _USUAL_SEPARATOR if _USUAL_SEPARATOR.encode() in _first_bytes(files[0], _AT_ONCE) else r"\n\n"
    raise DataError(
        f"{problem}; divide the text by data.document_separator = '{separator}' or data.block_characters = 2000, or "
        "add files"
    )


def _first_bytes(source: Source, size: int = 4) -> bytes:
    with source.path.open("rb") as file:
        return file.read(size)


def _encodable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
