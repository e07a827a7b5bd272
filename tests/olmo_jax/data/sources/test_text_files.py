import gzip
import json
import os
import random

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard

from olmo_jax.data import DataError
from olmo_jax.data.sources import text_files

ROWS = [{"text": "one döcument", "from": "x"}, {"text": "another\nof two lines", "from": "y"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 12345\n"


def read(*patterns, text_field="text", domain_field="", **options):
    matches = text_files.find([str(p) for p in patterns])
    return [e for source in matches for e in text_files.examples(source, text_field, domain_field, **options)]


def write(path, content):
    if path.suffix == ".gz":
        content = gzip.compress(content)
    elif path.suffix == ".zst":
        half = len(content) // 2
        content = zstandard.compress(content[:half]) + zstandard.compress(content[half:])
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.json.gz", "a.json.zst", "A.JSONL", "A.JSON.gz"]
)
def test_json_lines_are_read_in_every_compression(tmp_path, name):
    path = write(tmp_path / name, LINES + b"\n")
    assert [e.text for e in read(path)] == [row["text"] for row in ROWS]
    assert {e.domain for e in read(path)} == {"text"}
    assert [e.domain for e in read(path, domain_field="from")] == ["x", "y"]


def test_parquet_files_are_read(tmp_path):
    pd.DataFrame(ROWS).to_parquet(tmp_path / "a.parquet")
    assert [(e.text, e.domain) for e in read(tmp_path / "a.parquet", domain_field="from")] == [
        (row["text"], row["from"]) for row in ROWS
    ]


def test_a_text_file_is_one_document_and_globs_reach_into_folders(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    write(tmp_path / "deep" / "er" / "b.txt", "\ufeffsome text\n\nmore".encode())
    write(tmp_path / "a.txt", b"first")
    matches = read(tmp_path / "**" / "*.txt", tmp_path / "a.txt")
    assert [(e.id, e.text) for e in matches] == [("a.txt", "first"), ("b.txt", "some text\n\nmore")]


def test_sources_change_with_contents_and_not_with_places(tmp_path):
    def sources(folder, content):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "a.txt", content)
        return text_files.sources([str(tmp_path / folder / "*.txt")], "text", "")

    assert sources("here", b"same") == sources("there", b"same")
    assert sources("elsewhere", b"other") != sources("anywhere", b"same")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"a,b", "convert it"),
        ("a.txt", b"abc \xe9 def", r"a\.txt: byte 4: isn't UTF-8 \(0xe9\)"),
        ("a.txt", b" \n", "holds no text"),
        ("a.jsonl", b"", "holds no text"),
        ("a.jsonl", LINES + b'{"text": "\xff"}\n', f"line 3, byte {len(LINES) + 10}: isn't UTF-8"),
        ("a.jsonl", LINES + b"{oops}\n", "line 3: isn't JSON"),
        ("a.jsonl", b"[1]\n", "line 1: is a JSON list"),
        ("a.json", b'[{"text": "a"}, {"text": "b"}]', r"is a JSON list.*jq -c '\.\[\]' FILE writes"),
        ("a.json", b'[\n{"text": "a"}]', r"isn't JSON .*jq -c '\.\[\]' FILE writes"),
        ("a.jsonl", LINES[:-9], "line 2: isn't JSON"),  # cut
        ("a.jsonl", LINES + bytes(20), "line 3: isn't JSON .it holds NUL bytes"),
        ("a.jsonl", b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "line 1: isn't JSON"),
        ("a.jsonl", b'{"text": ' + b"[" * 200_000, "line 1: isn't JSON .it is nested too deeply"),
        ("a.jsonl", b'{"text": null}\n', "holds no text"),
        ("a.txt", b"words" + bytes(100) + b"words" * 200, "holds a run of NUL bytes"),
        ("a.txt", LFS_POINTER, "Git LFS pointer, not the file itself; run `git lfs pull`"),
        ("a.parquet", LFS_POINTER, "Git LFS pointer"),
        ("a.jsonl", LINES + b'{"txt": "a"}\n', "line 3: no field 'text', only 'txt'"),
        ("a.jsonl", b'{"text": 5}\n', "line 1: field 'text' is int, not text"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "line 1: field 'text' contains half of a surrogate"),
        ("a.parquet", b"not parquet at all", "can't be read as Parquet"),
    ],
)
def test_invalid_files_are_refused(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message) as raised:
        read(write(tmp_path / name, content))
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_damaged_archive_is_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="can't be unpacked"):
        read(path)


def test_a_missing_parquet_field_is_named(tmp_path):
    pd.DataFrame({"text": ["a", None]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no field 'body', only 'text'"):
        read(tmp_path / "a.parquet", text_field="body")
    with pytest.raises(DataError, match="no field 'kind', only 'text'"):
        read(tmp_path / "a.parquet", domain_field="kind")


def test_patterns_without_a_match_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"\*\.txt' matches no file"):
        read(tmp_path / "*.txt")


NESTED = [
    {"text": "one", "meta": {"set": "a", "in": {"side": "x"}}, "meta.set": "exact"},
    {"text": "two", "meta": {"set": "b", "in": {"side": "y"}}, "meta.set": "exact"},
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_nested_fields_are_read(tmp_path, kind):
    def write_rows(rows):
        path = tmp_path / f"a.{kind}"
        if kind == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
        return path

    plain = [{key: row[key] for key in ("text", "meta")} for row in NESTED]
    assert [e.domain for e in read(write_rows(plain), domain_field="meta.set")] == ["a", "b"]
    assert [e.domain for e in read(write_rows(plain), domain_field="meta.in.side")] == ["x", "y"]
    assert [e.text for e in read(write_rows(plain), text_field="meta.set")] == ["a", "b"]
    assert [e.domain for e in read(write_rows(NESTED), domain_field="meta.set")] == ["exact"] * 2
    for field in ("meta.none", "meta.set.more", "none.set"):
        with pytest.raises(DataError, match=f"no field {field!r}, only 'text', 'meta'"):
            read(write_rows(plain), domain_field=field)
    with pytest.raises(DataError, match="field 'meta' is dict, not text"):
        read(write_rows(plain), domain_field="meta")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_null_text_is_skipped_and_counted(tmp_path, kind):
    rows = [{"text": text, "from": "x"} for text in ("a", None, "b", None)]
    if kind == "jsonl":
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    notes = []
    assert [e.text for e in read(tmp_path / f"a.{kind}", note=notes.append)] == ["a", "b"]
    assert len(notes) == 1 and "skipped 2 of 4" in notes[0] and "since their field 'text' is null" in notes[0]
    with pytest.raises(DataError, match="field 'text' is null; give the row a domain"):
        read(tmp_path / f"a.{kind}", text_field="from", domain_field="text")


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.string())]
)
def test_text_is_read_from_every_parquet_encoding(tmp_path, kind):
    column = (
        pa.array(["döc", "two", "two"]).cast(kind)
        if pa.types.is_dictionary(kind)
        else pa.array([t.encode() if "binary" in str(kind) else t for t in ("döc", "two", "two")], kind)
    )
    pyarrow.parquet.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert [e.text for e in read(tmp_path / "a.parquet")] == ["döc", "two", "two"]


def test_binary_columns_that_are_not_utf8_are_refused(tmp_path):
    pyarrow.parquet.write_table(pa.table({"text": [b"ok", b"\xff"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="row 2: field 'text' is binary and isn't UTF-8"):
        read(tmp_path / "a.parquet")


def test_text_is_divided_at_separators_and_cut_into_blocks(tmp_path):
    path = write(tmp_path / "a.TXT", "\ufeffonce\r\nupon<|endoftext|>  <|endoftext|>a time".encode())
    assert [e.text for e in read(path, separator="<|endoftext|>")] == ["once\nupon", "a time"]
    assert [e.id for e in read(path, separator="\n")] == ["a.TXT:1", "a.TXT:2"]
    matches = read(write(tmp_path / "b.txt", b"some words\n" * 100), block_characters=100)
    assert [e.text for e in matches] == ["some words\n" * 9] * 11 + ["some words\n"]
    assert len({e.id for e in matches}) == 12
    with pytest.raises(DataError, match=r"c\.txt: byte 9: isn't UTF-8 \(0xe9\)"):
        read(write(tmp_path / "c.txt", "döc<s>do".encode() + b"\xe9, more"), separator="<s>")


def test_symbolic_links_keep_the_users_file_name(tmp_path):
    blob = write(tmp_path / "4d7a99", LINES)  # as in a Hugging Face cache
    (tmp_path / "snapshot").mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / "snapshot" / name).symlink_to(blob)
    matches = text_files.find([str(tmp_path / "snapshot" / "*"), str(tmp_path / "snapshot" / "b.jsonl")])
    assert [source.name for source in matches] == ["a.jsonl"]
    assert len(read(tmp_path / "snapshot" / "*.jsonl")) == 2
    (tmp_path / "other.jsonl").symlink_to(write(tmp_path / "named.jsonl", LINES))
    assert [s.name for s in text_files.find([str(tmp_path / "other.jsonl")])] == ["named.jsonl"]  # in old fingerprints
    blob.unlink()
    with pytest.raises(DataError, match="a.jsonl: is a link to .*4d7a99, which doesn't exist"):
        read(tmp_path / "snapshot" / "*")


def test_metadata_files_of_other_tools_are_skipped(tmp_path):
    for name in ("_SUCCESS", ".part.json.crc", "part.json.crc", "._part.json.swp", "_committed_1"):
        write(tmp_path / name, b"")
    write(tmp_path / "part.json", LINES)
    (tmp_path / "sub").mkdir()
    assert len(read(tmp_path / "*")) == len(read(tmp_path / "**" / "*")) == 2
    with pytest.raises(DataError, match="_SUCCESS: isn't .txt"):
        read(tmp_path / "_SUCCESS")
    with pytest.raises(DataError, match=r"matches only files such as .*, which hold no text"):
        read(tmp_path / "_*")


def test_names_with_brackets_and_home_paths_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a[1].jsonl", LINES)
    write(tmp_path / "a1.jsonl", LINES + LINES)
    assert len(read("~/a[1].jsonl")) == 2


def test_file_names_that_are_not_utf8_are_read(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl")
    with open(path, "wb") as file:
        file.write(LINES)
    assert [e.id for e in read(path)] == ["caf\\udce9.jsonl:1", "caf\\udce9.jsonl:2"]
    assert any(r"caf\udce9.jsonl" in name for name in text_files.sources([path], "text", ""))
    with pytest.raises(DataError, match=r"caf\\udce9.jsonl: line 1: no field 'body'") as raised:
        read(path, text_field="body")
    assert str(raised.value).isascii()


def test_folders_in_place_of_files_are_refused(tmp_path):
    def message(pattern):
        with pytest.raises(DataError) as raised:
            text_files.find([str(pattern)])
        return str(raised.value)

    (tmp_path / "a" / "b").mkdir(parents=True)
    assert "is a folder; it is empty" in message(tmp_path / "a" / "b")
    write(tmp_path / "a" / "b" / "x.JSON.gz", LINES)
    write(tmp_path / "a" / "b" / "README.md", b"")
    assert message(tmp_path / "a" / "b").endswith(f"is a folder; give {tmp_path}/a/b/*.JSON.gz")
    assert message(tmp_path / "a").endswith(f"is a folder; give {tmp_path}/a/**/*.JSON.gz")
    assert message(tmp_path / "*").endswith(f"only folders such as {tmp_path}/a; give {tmp_path}/a/**/*.JSON.gz")


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt", ".txt.gz"])
def test_rough_text_size_is_known_before_preparation(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(text_files, "_SAMPLE_BYTES", 700_000)
    rng = random.Random(0)
    texts = [" ".join(f"{rng.random():.6f}" for _ in range(100)) for i in range(3000)]
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pd.DataFrame({"text": texts, "other": texts}).to_parquet(path)
    elif "txt" in suffix:
        write(path, "".join(texts).encode())
    else:
        write(path, "".join(json.dumps({"text": t, "other": t}) + "\n" for t in texts).encode())
    (source,) = text_files.find([str(path)])
    assert text_files.rough_bytes(source, "text") == pytest.approx(sum(map(len, texts)), rel=0.2)


def test_txt_files_that_cannot_be_split_are_refused_at_once(tmp_path):
    def sources(*patterns, **options):
        return text_files.sources([str(tmp_path / p) for p in patterns], "text", "", validation_fraction=0.1, **options)

    write(tmp_path / "a.txt", b"to be or not to be")
    write(tmp_path / "b.txt", b"once upon a time<|endoftext|>there was")
    separator = r"data.document_separator = '%s' or data.block_characters = 2000, or add files"
    with pytest.raises(DataError, match=r"a.txt is one document, which can't be split.*" + separator % r"\\n\\n"):
        sources("a.txt")
    with pytest.raises(DataError, match=separator % r"<\|endoftext\|>"):
        sources("b.txt")
    with pytest.raises(DataError, match="each of the 2 .txt files is one document, and all are in the train split"):
        sources("*.txt")
    for i in range(30):
        write(tmp_path / f"c{i}.txt", f"document {i}".encode())
    before = sources("*.txt")
    assert sources("*.txt", separator="\n")["document_separator"] == r"\n"
    assert sources("a.txt", block_characters=9)["block_characters"] == "9"
    assert set(before) >= {"text_files", "text_field", "domain_field"} and len(before) == 3 + 32
