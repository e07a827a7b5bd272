"""Text files prepared in one pass, against the same documents read from a TFDS data set of them."""

import dataclasses
import gzip
import hashlib
import json
import random

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from olmo_jax.data import DataError
from olmo_jax.data.corpus import Corpus, TextFiles
from olmo_jax.data.shards import ShardWriter
from olmo_jax.data.sources import text_corpus, text_files
from olmo_jax.data.sources.text_corpus import TextCorpus
from olmo_jax.data.splits import split_of
from olmo_jax.data.tokenizer import train_bpe
from olmo_jax.data.tokenizing import key_order, portions, stream, workers
from olmo_jax.data.tokenizing.key_order import KeyOrder

replace = dataclasses.replace
EOS = "<|endoftext|>"


def rows(begin, end):
    rng = random.Random(begin)
    return [
        {
            "body": " ".join(rng.choices(["cat", "東京", "don't", "x1", "(a)"], k=1 + n % 9)) + f" {n}",
            "kind": f"k{n % 3}",
        }
        for n in range(begin, end)
    ]


@pytest.fixture(scope="module")
def config(tmp_path_factory, story_config):
    """Files of every kind, two of one name, and names that keys treat specially."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "b").mkdir()
    for name, content in (("a.jsonl", rows(0, 90)), ("b/a.jsonl", rows(90, 130)), (r"c\d.jsonl", rows(130, 150))):
        (folder / name).write_text("\n".join(map(json.dumps, content)))
    with gzip.open(folder / "e.json.gz", "wt", encoding="utf-8") as file:
        file.write("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows(150, 200)) + "\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(200, 240)), folder / "f.parquet")
    (folder / "g.txt").write_text("a text of its own")
    return replace(story_config, files=(str(folder / "**/*.*"),), block_characters=40)


@pytest.fixture(scope="module")
def documents(config, tmp_path_factory):
    """The documents in the order that TFDS gives them."""
    builder = TextFiles(
        files=config.files,
        text_field="body",
        domain_field="kind",
        block_characters=40,
        data_dir=tmp_path_factory.mktemp("tfds"),
        file_format="array_record",
    )
    builder.download_and_prepare(file_format="array_record")
    return list(Corpus(builder, "text", "domain"))


def written(config, directory, processes=1, text_bytes=0.0, tokenizer=None):
    directory.mkdir()
    tokenizer = tokenizer or train_bpe(["the cat sat"], 270, EOS)
    corpus = TextCorpus(config, text_files.find(config.files))
    with ShardWriter(directory, tokenizer.vocab_size, tokenizer.eos_id) as writer:
        stream.write(corpus, config, tokenizer, text_bytes, directory, lambda line: None, writer, processes)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def test_documents_are_written_in_the_order_of_tfds(config, documents, tmp_path):
    tokenizer = train_bpe(["the cat sat"], 270, EOS)
    written(config, tmp_path / "data", tokenizer=tokenizer)
    assert len(documents) > 240
    for split in ("train", "validation"):
        for domain in ("k0", "k1", "k2", "text"):
            texts = [d.text for d in documents if d.domain == domain and split_of(d.text, 0.2) == split]
            expected = [token for tokens in tokenizer.encode(texts) for token in (*tokens, tokenizer.eos_id)]
            assert np.fromfile(tmp_path / f"data/{split}.{domain}.npy", "<u2").tolist() == expected
            sizes = np.fromfile(tmp_path / f"data/{split}.{domain}.bytes", "<u8")
            assert sizes.tolist() == [len(text.encode()) for text in texts]


def test_output_does_not_depend_on_processes_portions_or_spilled_documents(config, tmp_path, monkeypatch):
    one_process = written(config, tmp_path / "alone")
    monkeypatch.setattr(text_corpus, "AT_ONCE", 200)
    monkeypatch.setattr(portions.in_parts, "__defaults__", (100,))
    monkeypatch.setattr(workers, "_FEW", 1)
    monkeypatch.setattr(key_order, "_TEXT_PER_RANGE", 1000)
    monkeypatch.setattr(key_order, "_BUFFERED", 500)
    assert written(config, tmp_path / "two", processes=2, text_bytes=10_000) == one_process
    assert written(config, tmp_path / "three", processes=3, text_bytes=2_000) == one_process


def test_memory_of_waiting_documents_is_bounded(config, tmp_path, monkeypatch):
    monkeypatch.setattr(key_order, "_BUFFERED", 500)
    monkeypatch.setattr(text_corpus, "AT_ONCE", 200)
    monkeypatch.setattr(KeyOrder, "ranges", lambda self: iter(()))
    written(config, tmp_path / "data", text_bytes=1e9)
    waiting = [path.stat().st_size for path in (tmp_path / "data").glob("range-*")]
    assert 2 < len(waiting) <= 2 * 16 and sum(waiting) > 10_000


@pytest.mark.parametrize(
    ("wrong", "message", "processes"),
    [
        ('{"body": 7, "kind": "a"}', "line 93: field 'body' is int, not text", 1),
        ("{", "line 93: isn't JSON", 1),
        ("caf\udce9", "line 93, byte {}: isn't UTF-8", 2),
        ('{"kind": "a"}', "line 93: no field 'body'", 2),
    ],
)
def test_a_bad_line_is_named_from_any_process(story_config, tmp_path, monkeypatch, wrong, message, processes):
    monkeypatch.setattr(text_corpus, "AT_ONCE", 200)
    monkeypatch.setattr(workers, "_FEW", 1)
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(row) for row in rows(0, 92)]
    good = "\n".join(lines) + "\n"
    path.write_bytes((good + wrong + "\n" + "\n".join(lines) + "\n{\n").encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=message.format(len(good) + 3)):
        written(replace(story_config, files=(str(path),)), tmp_path / "data", processes)


@pytest.mark.parametrize("content", ["", "\n\n", '{"body": " ", "kind": "a"}\n', '{"body": null, "kind": "a"}'])
def test_a_file_without_text_is_named(story_config, tmp_path, content):
    (tmp_path / "b.jsonl").write_text(content)
    (tmp_path / "a.jsonl").write_text(json.dumps(rows(0, 1)[0]))
    config = replace(story_config, files=(str(tmp_path / "*.jsonl"),))
    with pytest.raises(DataError, match=r"b\.jsonl: holds no text"):
        written(config, tmp_path / "data")


def test_progress_shows_rate_and_time_left(config, tmp_path, monkeypatch):
    now = iter(range(1000))
    monkeypatch.setattr(stream.time, "monotonic", lambda: float(next(now)))
    messages = []
    progress = stream._Progress(100e6, messages.append)
    for _ in range(25):
        progress.add(4_000_000)
    progress.end()
    assert messages[0] == "40 of about 100 MB tokenised, 4.0 MB/s, 15s left"
    assert messages[-1] == "100 MB tokenised in 26s, 3.8 MB/s"


def test_progress_omits_a_total_that_is_exceeded_or_unknown(monkeypatch):
    now = iter(range(1000))
    monkeypatch.setattr(stream.time, "monotonic", lambda: float(next(now)))
    for total in (0.0, 30e6):
        messages = []
        progress = stream._Progress(total, messages.append)
        for _ in range(12):
            progress.add(4_000_000)
        assert messages == ["40 MB tokenised, 4.0 MB/s"]


def test_rough_size_of_many_files_is_estimated_from_a_sample(story_config, tmp_path):
    texts = 0
    for number in range(40):
        content = rows(number * 10, number * 10 + 10)
        texts += sum(len(row["body"].encode()) for row in content)
        (tmp_path / f"{number:02}.jsonl").write_text("\n".join(map(json.dumps, content)))
    corpus = TextCorpus(story_config, text_files.find([str(tmp_path / "*")]))
    assert corpus.rough_bytes() == pytest.approx(texts, rel=0.1)
