"""Damage to files, as pure functions of their bytes and a random.Random: what disks, downloads and other programs do.

`mutate` takes a file's kind, and so reaches below its surface too: into the text of a compressed file, the values of a
JSON document, the rows of a table, the header of a safetensors file.
"""

import copy
import gzip
import io
import json
import random
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

Mutation = Callable[[bytes, random.Random], tuple[str, bytes]]

KINDS = ("bytes", "text", "json", "jsonl", "yaml", "gz", "zst", "parquet", "safetensors")

_HUGE = (10**400, -(10**30), 2**63, 2**31, 10**9, -1, 0, 1e308, float("nan"), float("inf"), -float("inf"), 5e-324, 0.5)
_ODD = ("", " ", "\0", "\ud800", "\u202e", "\ufeff", "a\nb\nc\nd", "../../up", "/", "*", "[", "%s{}", "nan", "1e3", "-")
_DEEP = 100_000


def mutate(content: bytes, kind: str, rng: random.Random) -> tuple[str, bytes]:
    """The mutation's name and the changed content, which is another than `content`."""
    for _ in range(100):
        name, changed = _once(content, kind, rng)
        if rng.random() < 0.2:
            more, changed = _once(changed, kind, rng)
            name = f"{name}+{more}"
        if changed != content:
            return name, changed
    return "append", content + b"\0"


def _once(content: bytes, kind: str, rng: random.Random) -> tuple[str, bytes]:
    inside = _INSIDE.get(kind)
    if inside is not None and rng.random() < 0.6:
        try:
            return inside(content, rng)
        except _CANNOT:
            pass  # damaged before, or what can't be said in this format: its bytes are changed below
    change = rng.choice(_OF_BYTES)
    return change.__name__.strip("_"), change(content, rng)


# Bytes


def _flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 4, 32))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _replace(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    if changed:
        changed[rng.randrange(len(changed))] = rng.choice((0, 10, 34, 44, 58, 91, 123, 127, 128, 255))
    return bytes(changed)


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.choice((0, 1, len(content) // 2, max(0, len(content) - 1), rng.randint(0, len(content))))]


def _cut_out(content: bytes, rng: random.Random) -> bytes:
    first, last = _slice(content, rng)
    return content[:first] + content[last:]


def _double(content: bytes, rng: random.Random) -> bytes:
    first, last = rng.choice(((0, len(content)), _slice(content, rng)))
    return content[:last] + content[first:last] + content[last:]


def _nul(content: bytes, rng: random.Random) -> bytes:
    first, last = rng.choice(((0, len(content)), _slice(content, rng), _block(content, rng)))
    return content[:first] + bytes(last - first) + content[last:]


def _swap(content: bytes, rng: random.Random) -> bytes:
    first, last = _slice(content, rng)
    return content[last:] + content[first:last] + content[:first]


def _insert(content: bytes, rng: random.Random) -> bytes:
    at = rng.randint(0, len(content))
    added = rng.choice(
        (rng.randbytes(rng.choice((1, 16, 4096))), b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"\xc3(")
    )
    return content[:at] + added + content[at:]


def _append(content: bytes, rng: random.Random) -> bytes:
    return content + rng.choice((b"\0" * 512, b"{", b"\n\n\n", b"\x1a", rng.randbytes(100), content[:20]))


def _slice(content: bytes, rng: random.Random) -> tuple[int, int]:
    first = rng.randint(0, len(content))
    return first, min(len(content), first + rng.choice((1, 8, 64, 512, 4096)))


def _block(content: bytes, rng: random.Random) -> tuple[int, int]:
    """A disk's block of 512 bytes, and all after it."""
    return 512 * rng.randint(0, len(content) // 512), len(content)


_OF_BYTES = (_flip, _flip, _replace, _cut, _cut, _cut_out, _double, _nul, _swap, _insert, _append)


# Texts


def _text(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Numbers and words of a text made huge, lines doubled or lost, another encoding."""
    text = content.decode("utf-8")
    change = rng.choice(("number", "word", "long", "line", "deep", "encoding"))
    if change == "number":
        matches = list(re.finditer(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", text))
        return "huge_number", _put(text, rng.choice(matches), _number(rng)) if matches else content
    if change == "word":
        matches = list(re.finditer(r"\w+", text))
        return "odd_word", _put(text, rng.choice(matches), rng.choice(_ODD)) if matches else content
    if change == "long":
        at = rng.randint(0, len(text))
        return "long_string", _encoded(text[:at] + _long(rng) + text[at:])
    if change == "line":
        lines = text.splitlines(keepends=True)
        at = rng.randrange(len(lines))
        return "lines", _encoded("".join(lines[:at] + lines[at : at + 1] * rng.choice((0, 2, 50)) + lines[at + 1 :]))
    if change == "deep":
        at = rng.randint(0, len(text))
        return "deep", _encoded(text[:at] + rng.choice("[{(") * _DEEP + text[at:])
    return "encoding", text.encode(rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-7")))


def _put(text: str, match: re.Match[str], value: str) -> bytes:
    return _encoded(text[: match.start()] + value + text[match.end() :])


def _number(rng: random.Random) -> str:
    return rng.choice(("9" * 5000, "1e400", "-1", "0", str(2**63), str(2**31), "1000000000", "NaN", "-1e308", "1_0"))


def _long(rng: random.Random) -> str:
    return rng.choice("aé 0\0\n") * rng.choice((300, 70_000, 1_000_000))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


# Values


def _value(value: Any, rng: random.Random) -> tuple[str, Any]:
    """A JSON value with one of the values in it changed."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places:
        return "other_type", _other(value, rng)
    holder, key = rng.choice(places)
    change = rng.choice(("other_type", "other_type", "huge_number", "odd_string", "long_string", "lost", "more"))
    if change == "other_type":
        holder[key] = _other(holder[key], rng)
    elif change == "huge_number":
        holder[key] = rng.choice(_HUGE)
    elif change == "odd_string":
        holder[key] = rng.choice(_ODD)
    elif change == "long_string":
        holder[key] = _long(rng)
    elif change == "lost":
        del holder[key]
    elif isinstance(holder, dict):
        holder[rng.choice((*_ODD, f"{key}_"))] = holder[key]
    else:
        holder.insert(key, holder[key])
    return change, value


def _places(value: Any) -> Any:
    """Every (holder, key) of a JSON value."""
    if isinstance(value, dict | list):
        for key, held in list(value.items() if isinstance(value, dict) else enumerate(value)):
            yield value, key
            yield from _places(held)


def _other(value: Any, rng: random.Random) -> Any:
    others = [None, True, 1, 2.5, "text", "7", [], {}, [value], {"value": value}, [[["deep"]]], str(value)]
    return rng.choice([other for other in others if type(other) is not type(value)])


def _or_text(change: Mutation) -> Mutation:
    """A change of what the text says, and in a quarter of cases of the text itself."""
    return lambda content, rng: (_text if rng.random() < 0.25 else change)(content, rng)


@_or_text
def _json(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    name, value = _value(json.loads(content), rng)
    return name, json.dumps(value).encode()


@_or_text
def _jsonl(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    lines = content.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    name, value = _value(json.loads(lines[at]), rng)
    return name, b"".join([*lines[:at], json.dumps(value).encode() + b"\n", *lines[at + 1 :]])


@_or_text
def _yaml(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    import yaml

    name, value = _value(yaml.safe_load(content), rng)
    return name, yaml.safe_dump(value).encode()


# Containers


def _gz(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    name, inside = _jsonl(gzip.decompress(content), rng)
    return name, gzip.compress(inside, mtime=0)


def _zst(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    import zstandard

    name, inside = _jsonl(zstandard.ZstdDecompressor().decompressobj().decompress(content), rng)
    return name, zstandard.ZstdCompressor().compress(inside)


def _parquet(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A table with other rows, or with a column of another type."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(content))
    column = rng.randrange(table.num_columns)
    if rng.random() < 0.5:
        rows = table.to_pylist()
        at = rng.randrange(len(rows))
        name, rows[at] = _value(rows[at], rng)
        # Of one type each, as a column has to be: what isn't text becomes its JSON.
        columns = sorted({key for row in rows for key in row})
        texts = {c: [v if isinstance(v := r.get(c), str | None) else json.dumps(v) for r in rows] for c in columns}
        table = pa.table(texts)
    else:
        name = "other_type"
        count = table.num_rows
        columns = (
            pa.array(range(count)),
            pa.nulls(count),
            pa.array([b"\xff\xfe"] * count),
            pa.array([["a"]] * count),
            pa.array([{"text": "a"}] * count),
            pa.array([1.5] * count),
            pa.array(["a"] * count).dictionary_encode(),
            pa.array([None, *["a"] * (count - 1)]),
            pa.array([0] * count, pa.timestamp("ns")),
        )
        table = table.set_column(column, table.column_names[column], rng.choice(columns))
    file = io.BytesIO()
    pq.write_table(table, file)
    return name, file.getvalue()


def _safetensors(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """The header's values changed, its length, or the weights' bytes."""
    (length,) = struct.unpack("<Q", content[:8])
    header, weights = content[8 : 8 + length], content[8 + length :]
    change = rng.choice(("header", "header", "length", "weights"))
    if change == "length":
        return "header_length", struct.pack("<Q", rng.choice((0, 1, length - 1, length + 1, 2**31, 2**63))) + content[
            8:
        ]
    if change == "weights":
        at = 4 * rng.randrange(len(weights) // 4)
        odd = struct.pack("<f", rng.choice((float("nan"), float("inf"), 3e38, -3e38, 1e-45)))
        count = rng.choice((1, 100, len(weights) // 4))
        return "weights", content[: 8 + length] + (weights[:at] + odd * count + weights[at:])[: len(weights)]
    name, header = _json(header, rng)
    return f"header_{name}", struct.pack("<Q", len(header)) + header + weights


_INSIDE: dict[str, Mutation] = {
    "text": _text,
    "json": _json,
    "jsonl": _jsonl,
    "yaml": _yaml,
    "gz": _gz,
    "zst": _zst,
    "parquet": _parquet,
    "safetensors": _safetensors,
}


def _errors() -> tuple[type[Exception], ...]:
    import pyarrow
    import yaml
    import zstandard

    # Struct, index and value errors of what was damaged before; OverflowError of numbers that a format can't hold.
    return (
        ValueError, IndexError, KeyError, TypeError, OSError, EOFError, OverflowError, RecursionError, struct.error,
        zlib.error, pyarrow.ArrowException, yaml.YAMLError, zstandard.ZstdError,
    )  # fmt: skip


_CANNOT = _errors()
