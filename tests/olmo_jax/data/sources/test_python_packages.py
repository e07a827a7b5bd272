import collections

import pytest

from olmo_jax.config import DataConfig
from olmo_jax.data.corpus import build
from olmo_jax.data.sources import prose, python_packages

CAP = 0.15


@pytest.fixture(scope="module")
def examples():
    return list(python_packages.examples(CAP))


def test_all_domains_exist_and_each_kind_reaches_its_cap(examples):
    size = collections.Counter()
    for example in examples:
        size[example.domain if example.domain in ("prose", "code") else "held out"] += len(example.text.encode())
    assert {e.domain for e in examples} == {"prose", "code", *python_packages.HELD_OUT}
    for kind, total in size.items():
        assert 0.5 * CAP * 1e6 < total <= CAP * 1e6, kind


def test_the_cap_samples_all_packages(examples):
    assert len({e.id.split("/")[0] for e in examples if e.domain == "prose"}) >= 5


def test_held_out_domains_share_no_paragraph_with_training_or_each_other(examples):
    earlier = set()
    for example in examples:
        if example.domain != "code":
            paragraphs = example.text.split("\n\n")
            assert prose.fresh(paragraphs, earlier) == paragraphs, example.id


def test_no_file_is_both_prose_and_code(examples):
    ids = [e.id for e in examples]
    assert len(set(ids)) == len(ids)


@pytest.mark.slow
def test_the_same_packages_give_the_same_corpus(examples, tmp_path):
    corpus = build(DataConfig(max_megabytes=CAP), tmp_path)
    assert sorted((d.domain, d.text) for d in corpus) == sorted((e.domain, e.text) for e in examples)


def test_sources_name_the_versions_and_the_cap():
    sources = python_packages.sources(3.0)
    assert sources["prose/numpy"] and sources["prose_jax/jax"] and sources["max_megabytes"] == "3.0"
    assert python_packages.sources(3.0) == sources
