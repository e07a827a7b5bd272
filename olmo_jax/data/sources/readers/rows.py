"""Read rows with named fields: JSON objects in lines, and the values of their fields."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from olmo_jax.data import DataError, some_of
from olmo_jax.errors import brief


def json_rows(
    stream: Iterable[bytes], where: str, first: int = 1, offset: int = 0
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the object of each line of JSON in UTF-8; empty lines are skipped.

    Args:
      where: the file, for messages.
      first: number of the first line in the file. offset: of its first byte in the file.

    Raises DataError, with `where` and the line, for a line that holds anything else.
    """
    for number, raw in enumerate(stream, start=first):
        at = f"{where}: line {number}"
        line = decoded(raw, f"{at},", offset)
        offset += len(raw)
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise DataError(f"{at}: isn't JSON ({_why(line, e)}); write one object per line{_remedy(line)}") from None
        if not isinstance(row, dict):
            raise DataError(f"{at}: is a JSON {type(row).__name__}, not an object with fields{_remedy(line)}")
        yield number, row


def decoded(raw: bytes, at: str, offset: int = 0) -> str:
    """Return UTF-8 as text, without a byte-order mark. Raises DataError with the offset of the first invalid byte.

    Args:
      at: the start of the message, "FILE:" or "FILE: line 3,".
      offset: of `raw` in the file.
    """
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as e:
        wrong = f"{at} byte {offset + e.start}: isn't UTF-8 (0x{raw[e.start]:02x})"
        raise DataError(f"{wrong}; convert it, for example with iconv -f LATIN1 -t UTF-8") from None


def value(row: dict[str, Any], field: str, at: str) -> Any:
    """Return the value of a field; "a.b" is the field b of the object in a, unless a field is named "a.b".

    Raises DataError, whose message begins with `at`, if there is no such field.
    """
    try:
        return _value(row, field)
    except KeyError:
        known = some_of(map(repr, _names(row)))
        raise DataError(
            f"{at}: no field {field!r}, only {known}; name one of these in data.text_field or data.domain_field"
        ) from None


def text(row: dict[str, Any], field: str, at: str) -> str | None:
    """Return the text in a field, None if it is null. Raises DataError if it isn't text."""
    content = value(row, field, at)
    if isinstance(content, bytes):  # some writers of Parquet store text as binary
        try:
            return content.decode()
        except UnicodeDecodeError:
            raise DataError(f"{at}: field {field!r} is binary and isn't UTF-8; correct the row") from None
    if content is not None and not isinstance(content, str):
        raise DataError(f"{at}: field {field!r} is {type(content).__name__}, not text; correct the row")
    try:
        (content or "").encode()
    except UnicodeEncodeError:
        raise DataError(f"{at}: field {field!r} contains half of a surrogate pair; correct the row") from None
    return content


def _value(row: dict[str, Any], field: str) -> Any:
    if field in row:
        return row[field]
    outer, _, rest = field.partition(".")
    inner = row[outer] if rest else None
    if not rest or not isinstance(inner, dict | None):
        raise KeyError(field)
    return None if inner is None else _value(inner, rest)


def _names(row: dict[str, Any]) -> Iterator[str]:
    for name, content in row.items():
        yield name
        if isinstance(content, dict):
            yield from (f"{name}.{inner}" for inner in content)


def _why(line: str, error: Exception) -> str:
    if "\0" in line:
        return "it holds NUL bytes, as after a power cut"
    return "it is nested too deeply" if isinstance(error, RecursionError) else brief(error)


def _remedy(line: str) -> str:
    """Return advice for a file that is one JSON array of objects; "" for any other line."""
    return "; jq -c '.[]' FILE writes the objects of an array as lines" if line.lstrip().startswith("[") else ""
