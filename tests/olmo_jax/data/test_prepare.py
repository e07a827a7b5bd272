import dataclasses
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from olmo_jax.config import ConfigError, DataConfig
from olmo_jax.data import DataError
from olmo_jax.data.corpus import TextFiles
from olmo_jax.data.fingerprint import sources
from olmo_jax.data.prepare import fingerprint, prepare
from olmo_jax.data.shards import TokenIndex
from tests.olmo_jax.data.tokenizing.processes import ended
from tests.plain import plain

replace = dataclasses.replace
CHECKOUT = Path(__file__).parents[3]


def quiet(line):
    pass


def contents(directory):
    """Return the content of every file that training reads, by name."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.iterdir() if p.is_file()}


def times(directory):
    return {p: p.stat().st_mtime_ns for p in directory.rglob("*")}


def test_splits_are_disjoint_even_where_documents_repeat(stories, story_config, story_file, tmp_path):
    twice = tmp_path / "twice.jsonl"
    twice.write_bytes(story_file.read_bytes() * 2)
    index = prepare(replace(story_config, files=(str(twice),)), tmp_path, quiet)
    for domain in index.domains:
        train, validation = ({d.tobytes() for d in index.documents(s, domain)} for s in ("train", "validation"))
        assert train and validation and not train & validation
        assert 10 < index.shard("validation", domain).documents / 2 < 40  # of 120, .2 expected


def test_the_same_sources_give_the_same_bytes_in_any_folder(stories, story_config, story_file, tmp_path):
    moved = tmp_path / story_file.name
    moved.write_bytes(story_file.read_bytes())
    config = replace(story_config, name="other", files=(str(moved),))
    again = prepare(config, tmp_path, quiet)
    assert contents(again.directory) == contents(stories.directory)
    assert fingerprint(config) == fingerprint(story_config)


def test_a_second_prepare_writes_nothing(stories, story_config):
    before = times(stories.directory)
    lines = []
    assert prepare(story_config, stories.directory.parent, lines.append) == stories
    assert times(stories.directory) == before
    assert not lines


def test_progress_reports_each_split_and_domain(story_config, tmp_path):
    lines = []
    prepare(story_config, tmp_path, lines.append)
    table = [line.split()[:2] for line in lines]
    assert all([split, domain] in table for split in ("train", "validation") for domain in ("fable", "news"))


@pytest.mark.parametrize(
    ("change", "half", "named"),
    [
        ({"validation_fraction": 0.3}, 0, "validation_fraction was 0.2, is 0.3"),
        ({"domain_field": ""}, 0, "domain_field was kind, is "),
        ({"bpe_vocab_size": 310}, 1, "bpe_vocab_size was 300, is 310"),
        ({"train_domains": ("fable",)}, 1, "bpe trained on was all domains, is fable"),
    ],
)
def test_changed_sources_are_refused_with_both_fingerprints(stories, story_config, change, half, named):
    before = times(stories.directory)
    changed = replace(story_config, **change)
    old, new = fingerprint(story_config), fingerprint(changed)
    assert old[half] != new[half] and old[1 - half] == new[1 - half]
    with pytest.raises(DataError) as raised:
        prepare(changed, stories.directory.parent, quiet)
    for part in (str(old), str(new), named, "choose another data.name"):
        assert part in str(raised.value)
    assert times(stories.directory) == before


def test_a_changed_file_is_refused(story_config, story_file, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(story_file.read_bytes())
    config = replace(story_config, files=(str(path),))
    prepare(config, tmp_path / "root", quiet)
    path.write_bytes(story_file.read_bytes() + b'{"body": "one more", "kind": "news"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl was \w{24}, is \w{24}"):
        prepare(config, tmp_path / "root", quiet)


def test_the_fingerprint_excludes_settings_of_the_run(story_config):
    other = replace(story_config, name="x", root="/y", sequence_length=8, batch_size=2)
    assert fingerprint(other) == fingerprint(story_config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_domains": ("fable", "novel")}, "no domain 'novel'; it has fable, news"),
        ({"validation_fraction": 1e-9}, "'fable' has no document in its validation split"),
        ({"validation_fraction": 1e-9}, r"nor have 1 others \('news'\); .*data.block_characters"),
        ({"validation_fraction": 1 - 1e-9}, "'fable' has no document in its train split"),
        ({"sequence_length": 10**6}, "fewer than one window"),
        ({"files": ("/nowhere/*.txt",)}, "matches no file"),
        ({"text_field": "txt"}, "line 1: no field 'txt'"),
        ({"tokenizer": "/nowhere/tokenizer.json"}, "no such file"),
        ({"eos_token": "</s>", "tokenizer": "{prepared}/tokenizer.json"}, "no token '</s>'"),
        ({"tokenizer": "{prepared}/"}, "is a folder; give .*/tokenizer.json"),
        ({"corpus": "lm1b"}, "data.tfds_dir = '' isn't a folder"),
        ({"corpus": "lm1b", "tfds_dir": "{prepared}"}, "no such data set in"),
    ],
)
def test_bad_input_leaves_nothing_behind(stories, story_config, tmp_path, change, message):
    change = {k: v.format(prepared=stories.directory) if isinstance(v, str) else v for k, v in change.items()}
    with pytest.raises(DataError, match=message) as raised:
        prepare(replace(story_config, **change), tmp_path, quiet)
    assert "\n" not in str(raised.value)
    assert [p.name for p in tmp_path.iterdir()] == [".stories.lock"]


def test_all_domains_too_small_for_a_split_are_listed_together(story_config, tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"body": f"text {i}", "kind": f"kind {i:02}" if i < 40 else "large"} for i in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"nor have \d+ others \('kind .*and \d+ more\).* in its train split") as raised:
        prepare(replace(story_config, files=(str(path),)), tmp_path, quiet)
    counts = re.findall(r"nor have (\d+) others", str(raised.value))
    assert sum(map(int, counts)) + len(counts) == 40 and "\n" not in str(raised.value)


def test_a_tokenizer_that_is_a_git_lfs_pointer_is_refused(story_config, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(DataError, match="tokenizer.json is a Git LFS pointer, .*run `git lfs pull`"):
        fingerprint(replace(story_config, tokenizer="~/tokenizer.json"))


def test_prepared_data_are_checked_against_the_run_that_uses_them(stories, story_config):
    with pytest.raises(DataError, match="fewer than one window"):
        prepare(replace(story_config, sequence_length=10**6), stories.directory.parent, quiet)


def test_a_folder_with_other_files_is_left_unchanged(story_config, tmp_path):
    (tmp_path / "stories").mkdir()
    (tmp_path / "stories" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="isn't prepared data"):
        prepare(story_config, tmp_path, quiet)
    assert (tmp_path / "stories" / "thesis.txt").read_text() == "mine"


def test_a_tokenizer_file_replaces_tokenizer_training(stories, story_config, tmp_path):
    config = replace(story_config, tokenizer=str(stories.directory / "tokenizer.json"), train_domains=("fable",))
    index = prepare(config, tmp_path, quiet)
    assert index.tokenizer_sha256 == stories.tokenizer_sha256
    assert (index.tokens("train", "news") == stories.tokens("train", "news")).all()


@pytest.fixture(scope="module")
def tfds_folder(story_file, tmp_path_factory):
    """The stories as a TFDS data set."""
    builder = TextFiles(
        files=[str(story_file)],
        text_field="body",
        domain_field="kind",
        data_dir=tmp_path_factory.mktemp("tfds"),
        file_format="array_record",
    )
    builder.download_and_prepare(file_format="array_record")
    return builder.data_path


def test_a_tfds_data_set_on_disk_is_prepared(stories, story_config, tfds_folder, tmp_path):
    shutil.copytree(tfds_folder, tmp_path / "tfds" / "text_files" / tfds_folder.name)
    config = replace(
        story_config, corpus="text_files_copy", tfds_dir=str(tfds_folder), text_field="text", domain_field=""
    )
    assert prepare(config, tmp_path / "a", quiet).domains == ("text",)
    (tmp_path / "tfds" / "text_files").rename(tmp_path / "tfds" / "renamed")
    by_name = replace(config, corpus="renamed", tfds_dir=str(tmp_path / "tfds"), domain_field="domain")
    by_domain = prepare(by_name, tmp_path / "b", quiet)
    assert by_domain.domains == ("fable", "news")
    same = contents(stories.directory)
    assert {**contents(by_domain.directory), "index.json": same["index.json"]} == same
    with pytest.raises(DataError, match="no field 'body', only domain, id, text"):
        prepare(replace(by_name, text_field="body"), tmp_path / "c", quiet)


@pytest.mark.parametrize("moment", ["reading the corpus", "training a BPE", "domain"])
def test_preparation_after_a_kill_gives_the_same_files(stories, story_config, tmp_path, moment):
    code = (
        "import json, sys, time; from pathlib import Path; from olmo_jax.config import *; "
        "from olmo_jax.data.prepare import prepare; "
        "config = from_config_dict(DataConfig, json.loads(sys.argv[1])); "
        "slow = lambda line: (print(line, flush=True), time.sleep(60 if sys.argv[3] in line else 0)); "
        "prepare(config, Path(sys.argv[2]), slow)"
    )
    arguments = [json.dumps(dataclasses.asdict(story_config)), str(tmp_path), moment]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
    )
    while moment not in process.stdout.readline():
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert (tmp_path / ".stories.partial").is_dir()
    assert not (tmp_path / "stories").exists()

    index = prepare(story_config, tmp_path, quiet)
    assert contents(index.directory) == contents(stories.directory)
    assert not (tmp_path / ".stories.partial").exists()


def damage(path, how):
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "zero":
        path.write_bytes(bytes(len(content)))
    else:
        path.write_text('{"fileFormat": [7]}')


@pytest.mark.parametrize("how", ["cut", "zero", "other"])
@pytest.mark.parametrize("file", ["dataset_info.json", "features.json", "*.array_record*"])
def test_a_damaged_tfds_data_set_is_refused(tfds_folder, story_config, tmp_path, file, how):
    place = tmp_path / "text_files_copy" / tfds_folder.name
    shutil.copytree(tfds_folder, place)
    (damaged,) = place.glob(file)
    damage(damaged, how)
    config = replace(
        story_config, corpus="text_files_copy", tfds_dir=str(place), text_field="text", domain_field="domain"
    )
    with pytest.raises(DataError, match="can't be read as a TFDS data set|no field 'text'|if it is damaged") as raised:
        prepare(config, tmp_path / "data", quiet)
    assert "\n" not in str(raised.value) and str(place) in str(raised.value)


def test_preparation_leaves_no_temporary_files(story_config, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    prepare(story_config, tmp_path, quiet)
    assert not list((tmp_path / "tmp").iterdir())


def test_null_text_is_reported_in_one_line(story_config, story_file, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(story_file.read_bytes() + b'{"body": null, "kind": "news"}\n')
    lines = []
    prepare(replace(story_config, files=(str(path),)), tmp_path, lines.append)
    assert sum("skipped 1 of 241 lines, since their field 'body' is null" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("change", "documents"), [({"document_separator": r"\n\n"}, 240), ({"block_characters": 200}, 170)]
)
def test_one_large_text_can_be_split(story_config, story_file, tmp_path, change, documents):
    rows = [json.loads(line)["body"] for line in story_file.read_text().splitlines()]
    path = tmp_path / "input.txt"
    path.write_text("\n\n".join(rows))
    whole = replace(story_config, files=(str(path),), text_field="text", domain_field="")
    with pytest.raises(DataError, match="is one document, which can't be split"):
        fingerprint(whole)
    index = prepare(replace(whole, **change), tmp_path, quiet)
    assert sum(shard.documents for shard in index.shards) == pytest.approx(documents, rel=0.1)
    assert all(index.shard(split, "text").documents for split in ("train", "validation"))
    key = next(iter(change))
    with pytest.raises(DataError, match=f"{key} was .*, is "):
        prepare(replace(whole, **{key: "\n" if key == "document_separator" else 9}), tmp_path, quiet)


_IN_SMALL_PORTIONS = (
    "import json, sys; from pathlib import Path; from olmo_jax.config import *; "
    "from olmo_jax.data.tokenizing import stream, workers; from olmo_jax.data.sources import text_corpus; "
    "from olmo_jax.data.prepare import prepare; "
    "text_corpus.AT_ONCE, workers._FEW, workers.cores, stream._SECONDS_BETWEEN_LINES = 2000, 1, lambda: 2, 0; "
    "config = from_config_dict(DataConfig, json.loads(sys.argv[1])); "
    "prepare(config, Path(sys.argv[2]), lambda line: print(line, flush=True))"
)


@pytest.fixture(scope="module")
def long_stories(story_config, story_file, tmp_path_factory):
    """A configuration of more text, and the contents of its prepared files."""
    folder = tmp_path_factory.mktemp("long")
    (folder / "long.jsonl").write_bytes(story_file.read_bytes() * 30)
    config = replace(story_config, files=(str(folder / "long.jsonl"),), bpe_megabytes=0.01)
    return config, contents(prepare(config, folder, quiet).directory)


@pytest.mark.parametrize("number", plain([signal.SIGKILL, signal.SIGTERM, signal.SIGINT], signal.SIGKILL))
def test_preparation_after_a_kill_of_several_processes_gives_the_same_files(long_stories, tmp_path, number):
    config, expected = long_stories
    arguments = [json.dumps(dataclasses.asdict(config)), str(tmp_path / "data")]
    process = subprocess.Popen(
        [sys.executable, "-c", _IN_SMALL_PORTIONS, *arguments], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
    )
    while "MB tokenised, " not in process.stdout.readline():
        assert process.poll() is None
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(number)
    assert process.wait(timeout=20) != 0
    process.stdout.close()
    assert len(children) == 2 and all(ended(pid) for pid in children)
    left = {".stories.lock"} | ({".stories.partial"} if number == signal.SIGKILL else set())
    assert {p.name for p in (tmp_path / "data").iterdir()} == left

    index = prepare(config, tmp_path / "data", quiet)
    assert {p.name for p in (tmp_path / "data").iterdir()} == {".stories.lock", "stories"}
    assert contents(index.directory) == expected


def test_a_sample_of_all_text_gives_the_same_tokenizer(stories, story_config, tmp_path):
    config = replace(story_config, bpe_megabytes=0.5)
    index = prepare(config, tmp_path, quiet)
    assert fingerprint(config).corpus == fingerprint(story_config).corpus
    assert fingerprint(config).tokenizer != fingerprint(story_config).tokenizer
    same = contents(stories.directory)
    assert {**contents(index.directory), "index.json": same["index.json"]} == same


def test_a_sample_gives_a_tokenizer_of_the_requested_size(stories, story_config, tmp_path):
    lines = []
    index = prepare(replace(story_config, bpe_megabytes=0.005), tmp_path, lines.append)
    assert index.vocab_size == 300 and index.tokenizer_sha256 != stories.tokenizer_sha256
    assert sum("training a BPE of 300 tokens on 0.005 MB" in line for line in lines) == 1


def test_a_too_small_sample_is_refused(story_config, tmp_path):
    with pytest.raises(DataError, match=r"only 2\d\d tokens, but data.bpe_vocab_size = 300; raise data") as raised:
        prepare(replace(story_config, bpe_megabytes=5e-5), tmp_path, quiet)
    assert "\n" not in str(raised.value)
    assert [p.name for p in tmp_path.iterdir()] == [".stories.lock"]
    with pytest.raises(ConfigError, match="bpe_megabytes"):
        replace(story_config, bpe_megabytes=-1.0).check("data")


def test_without_a_sample_the_fingerprint_is_unchanged(story_config):
    assert sources(story_config)["tokenizer"].keys() == {"eos_token", "bpe_vocab_size", "bpe trained on"}


SIGNALS = [(signal.SIGINT, 0.0), (signal.SIGTERM, 0.7)]


@pytest.mark.parametrize(("number", "after"), plain(SIGNALS, SIGNALS[0], unpack=True))
def test_a_signal_ends_the_training_of_the_tokenizer(story_config, tmp_path, number, after):
    path = tmp_path / "dna.jsonl"
    rng = random.Random(0)
    path.write_text("".join(json.dumps({"text": "".join(rng.choices("ACGT", k=200_000))}) + "\n" for _ in range(20)))
    config = replace(story_config, files=(str(path),), text_field="text", domain_field="", bpe_vocab_size=8000)
    code = (
        "import json, signal, sys; from pathlib import Path; from olmo_jax.config import *; "
        "from olmo_jax.data.prepare import prepare; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        "config = from_config_dict(DataConfig, json.loads(sys.argv[1])); "
        "show = lambda line: print(line, flush=True)\n"
        "try: prepare(config, Path(sys.argv[2]), show)\n"
        "except KeyboardInterrupt: sys.exit(75)"
    )
    arguments = [json.dumps(dataclasses.asdict(config)), str(tmp_path / "data")]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
    )
    while "training a BPE" not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(after)
    process.send_signal(number)
    process.communicate(timeout=10)  # in less than two seconds if no other process uses the cores
    assert process.returncode == 75
    assert [p.name for p in (tmp_path / "data").iterdir()] == [".stories.lock"]


def test_concurrent_preparations_prepare_once(stories, story_config, tmp_path):
    lines = []
    threads = [threading.Thread(target=prepare, args=(story_config, tmp_path, lines.append)) for _ in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    assert sum("reading the corpus" in line for line in lines) == 1
    assert contents(TokenIndex.load(tmp_path / "stories").directory) == contents(stories.directory)


def test_fingerprint_of_python_packages_depends_on_the_cap():
    small, large = (fingerprint(DataConfig(max_megabytes=cap)) for cap in (1.0, 2.0))
    assert small.corpus != large.corpus
    assert small.tokenizer == large.tokenizer
