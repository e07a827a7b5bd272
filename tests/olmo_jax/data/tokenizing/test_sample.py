import hashlib
from collections import Counter

import pytest

from olmo_jax.config import DataConfig
from olmo_jax.data.splits import split_of
from olmo_jax.data.tokenizing.portions import Document, stored
from olmo_jax.data.tokenizing.sample import Sample, Scan, scan

DOCUMENTS = [Document("ab"[n % 2], f"document {n} — " + "é" * (n * 7 % 40)) for n in range(300)]


class OneDocumentAtATime:
    """A corpus in portions of one document, in some order."""

    def __init__(self, documents):
        self._documents = documents

    def portions(self, note):
        for document in self._documents:
            yield from stored([document])


def expected(most, domains=("a", "b")):
    """Return the sample by its definition: training documents in order of SHA-256, cut at the maximum size."""
    chosen = [text.encode() for domain, text in DOCUMENTS if domain in domains and split_of(text, 0.2) == "train"]
    return b"".join(sorted(chosen, key=lambda raw: hashlib.sha256(raw).digest()))[:most].decode(errors="ignore")


def sampled(documents, megabytes, processes=1, **choices):
    config = DataConfig(bpe_megabytes=megabytes, validation_fraction=0.2, **choices)
    bytes_of, sample = scan(OneDocumentAtATime(documents), config, processes)
    assert bytes_of == Counter(
        {name: sum(len(text.encode()) for domain, text in documents if domain == name) for name in "ab"}
    )
    return sample


@pytest.mark.parametrize("most", [1, 100, 1001, 5000, 10**6])
@pytest.mark.parametrize("domains", [("a", "b"), ("b",)])
def test_the_sample_is_the_first_training_documents_by_hash(most, domains):
    sample = sampled(DOCUMENTS, most / 1e6, train_domains=domains)
    assert "".join(sample.texts()) == expected(most, domains)
    assert sample.whole == (most == 10**6)


@pytest.mark.parametrize(("order", "processes"), [(-1, 1), (-1, 2)])
def test_the_sample_does_not_depend_on_order_or_processes(order, processes):
    assert list(sampled(DOCUMENTS[::order], 0.002, processes).texts()) == list(sampled(DOCUMENTS, 0.002).texts())


def test_repeated_documents_are_sampled_as_often_as_they_occur():
    twice = "".join(sampled(DOCUMENTS * 2, 0.002).texts())
    assert len(twice.encode()) in (1999, 2000)
    assert Counter(twice.split("document ")[1:-1]).most_common()[0][1] == 2


def test_without_a_sample_no_text_is_held():
    assert not list(sampled(DOCUMENTS, 0.0).texts())
    assert not list(sampled(DOCUMENTS, 20.0, tokenizer="olmo").texts())


def test_little_more_than_twice_the_sample_is_held_or_sent():
    sample = Sample(1000)
    job = Scan(0.2, (), wanted=True)
    sent = 0
    for portion in OneDocumentAtATime(DOCUMENTS).portions(None):
        for candidate in job((portion, sample.last)).candidates:
            sample.add(*candidate)
            sent += len(candidate[1])
    assert len("".join(sample.texts()).encode()) in (999, 1000)
    assert sent < 0.6 * sum(len(text.encode()) for _, text in DOCUMENTS)
