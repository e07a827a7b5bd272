import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from olmo_jax.data import DataError
from olmo_jax.data.shards import INDEX_FILE, ShardWriter, TokenIndex
from olmo_jax.data.tokenizer import load


@pytest.fixture
def copy(stories, tmp_path):
    return shutil.copytree(stories.directory, tmp_path / "copy")


def written(directory, vocab_size, documents):
    """Write `documents`, (split, domain, tokens), in the given order and return their index."""
    with ShardWriter(directory, vocab_size, eos_id=0) as writer:
        for split, domain, tokens in documents:
            writer.add(split, domain, np.array(tokens, np.uint32), text_bytes=1)
    return TokenIndex(directory, writer.dtype, vocab_size, 0, "", "", {}, writer.shards())


def test_documents_round_trip_and_end_in_eos(tmp_path):
    documents = [[5, 6, 7], [], [8]]
    index = written(tmp_path, 100, [("train", "a", d) for d in documents])
    assert [d.tolist() for d in index.documents("train", "a")] == documents
    assert index.tokens("train", "a").tolist() == [5, 6, 7, 0, 0, 8, 0]
    assert list(index.documents("validation", "a")) == []


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, "<u2"), (2**16 + 1, "<u4")])
def test_files_are_raw_little_endian(tmp_path, vocab_size, dtype):
    index = written(tmp_path, vocab_size, [("train", "a", [vocab_size - 1])])
    raw = np.frombuffer((tmp_path / index.shard("train", "a").file).read_bytes(), dtype)
    assert raw.tolist() == [vocab_size - 1, 0]


def test_tokens_outside_the_vocabulary_are_not_written(tmp_path):
    with pytest.raises(DataError, match="token 100 lies outside the vocabulary of 100"):
        written(tmp_path, 100, [("train", "a", [3, 100])])


def test_a_token_outside_the_vocabulary_is_a_damaged_file(tmp_path):
    index = written(tmp_path, 100, [("train", "a", [5, 6]), ("train", "a", [7])])
    file = index.token_file("train", "a")[0]
    np.array([5, 6, 0, 100, 0], "<u2").tofile(file)
    documents = index.documents("train", "a")
    assert next(documents).tolist() == [5, 6]
    with pytest.raises(DataError, match=r"train\.a\.npy: has changed since it was written"):
        next(documents)


def test_domains_of_any_name_have_separate_files(tmp_path):
    domains = ["a/b", "a_b", "../a", "東京", "x" * 300]
    index = written(tmp_path, 100, [("train", domain, [i]) for i, domain in enumerate(domains)])
    assert [index.tokens("train", domain)[0] for domain in domains] == [0, 1, 2, 3, 4]
    assert {path.parent for path in tmp_path.rglob("*")} == {tmp_path}


def test_documents_are_stored_to_their_last_character(stories, story_file):
    tokenizer = load(stories.directory / "tokenizer.json", "<|endoftext|>")
    decoded = [
        (tokenizer.decode(document), domain)
        for split in ("train", "validation")
        for domain in stories.domains
        for document in stories.documents(split, domain)
    ]
    rows = map(json.loads, story_file.read_text(encoding="utf-8").splitlines())
    assert sorted(decoded) == sorted((row["body"], row["kind"]) for row in rows)


def test_load_returns_what_was_saved(stories):
    assert TokenIndex.load(stories.directory) == stories


def test_the_bytes_of_each_text_are_stored_beside_it(stories, story_file):
    tokenizer = load(stories.directory / "tokenizer.json", "<|endoftext|>")
    for shard in stories.shards:
        texts = [tokenizer.decode(document) for document in stories.documents(shard.split, shard.domain)]
        sizes = stories.text_bytes(shard.split, shard.domain)
        assert sizes.tolist() == [len(text.encode()) for text in texts]
        assert sizes.sum() == shard.bytes
        raw = np.frombuffer((stories.directory / f"{shard.split}.{shard.domain}.bytes").read_bytes(), "<u8")
        assert raw.tolist() == sizes.tolist()


def as_before_bytes_were_stored(directory):
    index = json.loads((directory / INDEX_FILE).read_text())
    for shard in index["shards"]:
        (directory / shard.pop("sizes")).unlink()
    (directory / INDEX_FILE).write_text(json.dumps(index))


def test_data_without_stored_byte_counts_are_read_and_unchanged(stories, copy):
    as_before_bytes_were_stored(copy)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    index = TokenIndex.load(copy)
    assert index.text_bytes("train", "fable") is None
    np.testing.assert_array_equal(index.tokens("train", "fable"), stories.tokens("train", "fable"))
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_documents_stay_in_order_beyond_the_write_buffer(tmp_path, monkeypatch):
    monkeypatch.setattr("olmo_jax.data.shards._BUFFERED", 50)
    documents = [
        (split, domain, list(range(n))) for n in range(9) for split in ("train", "validation") for domain in "ab"
    ]
    index = written(tmp_path, 100, documents)
    for split in ("train", "validation"):
        for domain in "ab":
            assert [d.tolist() for d in index.documents(split, domain)] == [list(range(n)) for n in range(9)]
            assert index.text_bytes(split, domain).tolist() == [1] * 9


MANY_DOMAINS = """
import json
import resource, sys
from pathlib import Path
import numpy as np
import pyarrow
from olmo_jax.data.shards import ShardWriter, TokenIndex
from olmo_jax.data.windows import epochs, training_tokens, first_documents

directory = Path(sys.argv[1])
domains = [f"domain {i}" for i in range(300)]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
with ShardWriter(directory, 1000, eos_id=0) as writer:
    for n in range(3):
        for i, domain in enumerate(domains):
            for split in ("train", "validation"):
                writer.add(split, domain, np.array([n, i]), 4)
(directory / "tokenizer.json").touch()
TokenIndex(directory, writer.dtype, 1000, 0, "", "", {}, writer.shards()).save()
index = TokenIndex.load(directory)
kept = training_tokens(index, ()), [index.documents("validation", domain) for domain in domains]
documents = [[d.tolist() for d in first_documents(index, domain, 100)] for domain in domains]
sizes = [index.text_bytes("validation", domain).tolist() for domain in domains]
print(json.dumps({"epochs": epochs(index, (), 4, 4), "documents": documents, "sizes": sizes}))
"""


def test_hundreds_of_domains_need_few_open_files(tmp_path):
    """300 domains are written and read back by a process limited to 64 open files."""
    read = json.loads(subprocess.check_output([sys.executable, "-c", MANY_DOMAINS, str(tmp_path)]))
    assert read["documents"] == [[[0, i], [1, i], [2, i]] for i in range(300)]
    assert read["sizes"] == [[4, 4, 4]] * 300
    assert read["epochs"] == 4 / 2696


def test_an_unknown_domain_is_named_with_the_known_ones(stories):
    with pytest.raises(DataError, match="no domain 'novel' in train; give one of fable, news"):
        stories.tokens("train", "novel")


@pytest.mark.parametrize(
    "change",
    [{"dtype": "float99"}, {"dtype": 16}, {"eos_id": "0"}, {"vocab_size": -1}, {"shards": 5}, {"shards": [5]},
     {"fingerprint": None}, {"sources": []}, {"colour": "red"}],
)  # fmt: skip
def test_an_index_with_a_value_of_the_wrong_type_is_refused(copy, change):
    index = json.loads((copy / INDEX_FILE).read_text())
    (copy / INDEX_FILE).write_text(json.dumps(index | change))
    with pytest.raises(DataError, match=r"index\.json: isn't an index"):
        TokenIndex.load(copy)


@pytest.mark.parametrize("change", [{"file": 3}, {"tokens": "9"}, {"documents": True}, {"sizes": 1.5}, {"split": None}])
def test_a_shard_with_a_value_of_the_wrong_type_is_refused(copy, change):
    index = json.loads((copy / INDEX_FILE).read_text())
    index["shards"][0] |= change
    (copy / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"index\.json: isn't an index"):
        TokenIndex.load(copy)


@pytest.mark.parametrize("content", [b"[]", b"\xff\xfe", b"[" * 100000, b"", b"\0" * 100])
def test_an_invalid_index_is_refused(copy, content):
    (copy / INDEX_FILE).write_bytes(content)
    with pytest.raises(DataError, match=r"index\.json: isn't"):
        TokenIndex.load(copy)


def test_damaged_data_folders_are_refused(copy, stories):
    whole = stories
    file = copy / "train.fable.npy"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"train\.fable\.npy: has \d+ bytes, but index.json says \d+"):
        TokenIndex.load(copy)
    file.unlink()
    with pytest.raises(DataError, match=r"train\.fable\.npy: is missing"):
        TokenIndex.load(copy)
    shutil.copy(whole.directory / "train.fable.npy", file)
    offsets = copy / "train.fable.offsets"
    offsets.write_bytes(offsets.read_bytes()[::-1])
    with pytest.raises(DataError, match=r"train\.fable\.offsets: has changed since it was written"):
        list(TokenIndex.load(copy).documents("train", "fable"))
    sizes = copy / "train.fable.bytes"
    sizes.write_bytes(b"\x01" + sizes.read_bytes()[1:])
    with pytest.raises(DataError, match=r"train\.fable\.bytes: has changed since it was written"):
        TokenIndex.load(copy).text_bytes("train", "fable")
    sizes.write_bytes(b"")
    with pytest.raises(DataError, match=r"train\.fable\.bytes: has 0 bytes, but"):
        TokenIndex.load(copy)
    (copy / INDEX_FILE).write_text('{"format": 1}')
    with pytest.raises(DataError, match="isn't an index"):
        TokenIndex.load(copy)
    (copy / INDEX_FILE).write_text("{")
    with pytest.raises(DataError, match="isn't JSON"):
        TokenIndex.load(copy)
    (copy / INDEX_FILE).unlink()
    with pytest.raises(DataError, match="run `olmo-jax prepare` first"):
        TokenIndex.load(copy)
