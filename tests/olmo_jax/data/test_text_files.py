import gzip
import json

import pandas as pd
import pytest
import zstandard

from olmo_jax.data import DataError, text_files

ROWS = [{"text": "one döcument", "from": "x"}, {"text": "another\nof two lines", "from": "y"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def read(*patterns, text_field="text", domain_field=""):
    found = text_files.find([str(p) for p in patterns])
    return [e for source in found for e in text_files.examples(source, text_field, domain_field)]


def write(path, content):
    if path.suffix == ".gz":
        content = gzip.compress(content)
    elif path.suffix == ".zst":
        half = len(content) // 2
        content = zstandard.compress(content[:half]) + zstandard.compress(content[half:])
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_json_lines_however_they_are_packed(tmp_path, name):
    path = write(tmp_path / name, LINES + b"\n")
    assert [e.text for e in read(path)] == [row["text"] for row in ROWS]
    assert {e.domain for e in read(path)} == {"text"}
    assert [e.domain for e in read(path, domain_field="from")] == ["x", "y"]


def test_parquet(tmp_path):
    pd.DataFrame(ROWS).to_parquet(tmp_path / "a.parquet")
    assert [(e.text, e.domain) for e in read(tmp_path / "a.parquet", domain_field="from")] == [
        (row["text"], row["from"]) for row in ROWS
    ]


def test_a_text_file_is_one_document_and_globs_reach_into_folders(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    write(tmp_path / "deep" / "er" / "b.txt", "\ufeffsome text\n\nmore".encode())
    write(tmp_path / "a.txt", b"first")
    found = read(tmp_path / "**" / "*.txt", tmp_path / "a.txt")
    assert [(e.id, e.text) for e in found] == [("a.txt", "first"), ("b.txt", "some text\n\nmore")]


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
        ("a.jsonl", LINES + b'{"txt": "a"}\n', "line 3: no field 'text', only 'txt'"),
        ("a.jsonl", b'{"text": 5}\n', "line 1: field 'text' is int, not text"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "line 1: field 'text' has half a surrogate"),
        ("a.parquet", b"not parquet at all", "can't be read as Parquet"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message) as raised:
        read(write(tmp_path / name, content))
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_damaged_archive(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="can't be unpacked"):
        read(path)


def test_a_parquet_field_that_is_not_there(tmp_path):
    pd.DataFrame({"text": ["a", None]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no field 'body', only 'text'"):
        read(tmp_path / "a.parquet", text_field="body")
    with pytest.raises(DataError, match="no field 'kind', only 'text'"):
        read(tmp_path / "a.parquet", domain_field="kind")


def test_patterns_that_match_nothing(tmp_path):
    with pytest.raises(DataError, match=r"\*\.txt' matches no file"):
        read(tmp_path / "*.txt")
