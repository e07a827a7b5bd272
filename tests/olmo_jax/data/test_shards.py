import json
import shutil

import numpy as np
import pytest

from olmo_jax.data import DataError
from olmo_jax.data.shards import INDEX_FILE, ShardWriter, TokenIndex
from olmo_jax.data.tokenizer import load


@pytest.fixture
def copy(stories, tmp_path):
    return shutil.copytree(stories.directory, tmp_path / "copy")


def written(directory, vocab_size, documents):
    """The index of `documents`, (split, domain, tokens), written as they come."""
    with ShardWriter(directory, vocab_size, eos_id=0) as writer:
        for split, domain, tokens in documents:
            writer.add(split, domain, np.array(tokens, np.uint32), text_bytes=1)
    return TokenIndex(directory, writer.dtype, vocab_size, 0, "", "", {}, writer.shards())


def test_documents_come_back_whole_and_end_in_eos(tmp_path):
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


def test_domains_of_any_name_have_files_of_their_own(tmp_path):
    domains = ["a/b", "a_b", "../a", "東京", "x" * 300]
    index = written(tmp_path, 100, [("train", domain, [i]) for i, domain in enumerate(domains)])
    assert [index.tokens("train", domain)[0] for domain in domains] == [0, 1, 2, 3, 4]
    assert {path.parent for path in tmp_path.rglob("*")} == {tmp_path}


def test_every_document_is_there_to_its_last_character(stories, story_file):
    tokenizer = load(stories.directory / "tokenizer.json", "<|endoftext|>")
    decoded = [
        (tokenizer.decode(document), domain)
        for split in ("train", "validation")
        for domain in stories.domains
        for document in stories.documents(split, domain)
    ]
    rows = map(json.loads, story_file.read_text(encoding="utf-8").splitlines())
    assert sorted(decoded) == sorted((row["body"], row["kind"]) for row in rows)


def test_load_gives_what_was_saved(stories):
    assert TokenIndex.load(stories.directory) == stories


def test_an_unknown_domain_is_named_with_those_there_are(stories):
    with pytest.raises(DataError, match="no domain 'novel' in train; there are fable, news"):
        stories.tokens("train", "novel")


def test_damaged_folders(copy):
    file = copy / "train.fable.npy"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"train\.fable\.npy: has \d+ bytes where index.json says \d+"):
        TokenIndex.load(copy)
    file.unlink()
    with pytest.raises(DataError, match=r"train\.fable\.npy: is missing"):
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
