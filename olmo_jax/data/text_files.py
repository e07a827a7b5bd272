"""The user's own text: .txt, .jsonl, .jsonl.gz, .jsonl.zst and .parquet, read as a stream of examples."""

import glob
import gzip
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from olmo_jax.data import DataError
from olmo_jax.data.example import Example

VERSION = "1.0.0"
DEFAULT_DOMAIN = "text"
SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_ROWS_AT_ONCE = 1024


class Source(NamedTuple):
    name: str  # without its folder: where files lie decides nothing
    sha256: str
    path: Path


def find(patterns: Sequence[str]) -> list[Source]:
    """The files that paths and globs (`**` too, and `~`) stand for, each once, by name and then by content.

    Raises DataError for a pattern that matches no file and for a file that isn't one of SUFFIXES.
    """
    paths: dict[Path, None] = {}
    for pattern in patterns:
        matched = [Path(p) for p in glob.glob(os.path.expanduser(pattern), recursive=True)]
        matched = [p for p in matched if p.is_file()]
        if not matched:
            raise DataError(f"data.files: {pattern!r} matches no file (seen from {Path.cwd()}); correct the path")
        paths |= dict.fromkeys(path.resolve() for path in matched)
    for path in paths:
        if not path.name.endswith(SUFFIXES):
            raise DataError(f"{path}: is none of {', '.join(SUFFIXES)}; convert it or narrow data.files")
    return sorted(Source(path.name, _sha256(path), path) for path in paths)


def sources(patterns: Sequence[str], text_field: str, domain_field: str) -> dict[str, str]:
    """What the corpus is made from: names and contents of the files, and the fields that are read."""
    found = {"text_files": VERSION, "text_field": text_field, "domain_field": domain_field}
    for number, source in enumerate(find(patterns)):
        found[f"{number:06d} {source.name}"] = source.sha256
    return found


def examples(source: Source, text_field: str, domain_field: str) -> Iterator[Example]:
    """The documents of one file: all of a .txt, a line of a .jsonl, a row of a .parquet.

    Documents of nothing but white space are passed over. A .txt, and every file while `domain_field` is "", is of the
    domain "text". Raises DataError, with the line or row, for what can't be read, a field that isn't there, a value
    that isn't text, and a file with no document in it.
    """
    if source.name.endswith(".txt"):
        found: Iterator[Example] = iter([Example(source.name, DEFAULT_DOMAIN, _utf8(source.path.read_bytes(), source))])
    else:
        rows = _parquet_rows if source.name.endswith(".parquet") else _json_rows
        found = (
            Example(
                f"{source.name}:{at.split()[-1]}",
                _text(row, domain_field, source, at) if domain_field else DEFAULT_DOMAIN,
                _text(row, text_field, source, at),
            )
            for at, row in rows(source, [text_field, *([domain_field] if domain_field else [])])
        )
    empty = True
    for example in found:
        if example.text.strip():
            empty = False
            yield example
    if empty:
        raise DataError(f"{source.path}: holds no text; fill it or leave it out of data.files")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _utf8(raw: bytes, source: Source, at: str = "", offset: int = 0) -> str:
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as e:
        where = f"{at}, byte {offset + e.start}" if at else f"byte {e.start}"
        remedy = "convert it, such as with iconv -f LATIN1 -t UTF-8"
        raise DataError(f"{source.path}: {where}: isn't UTF-8 (0x{raw[e.start]:02x}); {remedy}") from None


def _text(row: dict[str, Any], field: str, source: Source, at: str) -> str:
    if field not in row:
        known = ", ".join(map(repr, row)) or "none"
        raise DataError(f"{source.path}: {at}: no field {field!r}, only {known}; name it in data.text_field or "
                        "data.domain_field")  # fmt: skip
    value = row[field]
    if not isinstance(value, str):
        raise DataError(f"{source.path}: {at}: field {field!r} is {type(value).__name__}, not text; mend the row")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{source.path}: {at}: field {field!r} has half a surrogate pair; mend the row") from None
    return value


def _json_rows(source: Source, fields: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    del fields  # a JSON line is read whole
    offset = 0
    for number, raw in enumerate(_lines(source), start=1):
        at = f"line {number}"
        line = _utf8(raw, source, at, offset)
        offset += len(raw)
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as e:
            raise DataError(f"{source.path}: {at}: isn't JSON ({e}); one object a line is needed") from None
        if not isinstance(row, dict):
            raise DataError(f"{source.path}: {at}: is a JSON {type(row).__name__}, not an object with fields")
        yield at, row


def _lines(source: Source) -> Iterator[bytes]:
    import zstandard

    try:
        with _open(source.path) as file:
            yield from file
    except (gzip.BadGzipFile, EOFError, zstandard.ZstdError) as e:
        raise DataError(f"{source.path}: can't be unpacked ({e}); fetch or compress it again") from None


def _open(path: Path) -> IO[bytes]:
    if path.name.endswith(".gz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.name.endswith(".zst"):
        import zstandard

        # Several frames in one file are what parallel compressors write.
        reader = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True, closefd=True)
        return io.BufferedReader(reader)  # type: ignore[arg-type]
    return path.open("rb")


def _parquet_rows(source: Source, fields: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(source.path) as file:
            known = [name for name in fields if name in file.schema_arrow.names]
            if known != fields:
                _text(
                    dict.fromkeys(file.schema_arrow.names), next(f for f in fields if f not in known), source, "row 1"
                )
            number = 0
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=fields):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as e:
        raise DataError(f"{source.path}: can't be read as Parquet ({e}); write it again") from None
