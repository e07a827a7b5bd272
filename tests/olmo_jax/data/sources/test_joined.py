from types import SimpleNamespace

import pytest

from olmo_jax.config import DataConfig
from olmo_jax.data import DataError
from olmo_jax.data.corpus import build
from olmo_jax.data.fingerprint import fingerprint, rough_bytes, sources
from olmo_jax.data.prepare import prepare
from olmo_jax.data.sources import python_packages, registry
from olmo_jax.data.sources.python_packages import Example

JOINED = "debian_prose+olmo_tasks"
STORY = "There was once a story that nobody had told, so somebody told it {n} times over."


def fake(domains, documents):
    """Return a corpus with the given number of documents per domain."""
    return SimpleNamespace(
        VERSION="1.0.0",
        MEGABYTES=dict.fromkeys(domains, 2.0),
        sources=lambda max_megabytes: {"version": "1.0.0", "domains": ", ".join(domains)},
        examples=lambda max_megabytes: (
            Example(f"{d}/{n}", d, f"{d}: {STORY.format(n=n)}") for d in domains for n in range(documents)
        ),
    )


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setitem(registry.CORPORA, "debian_prose", fake(("essay", "bible"), 40))
    monkeypatch.setitem(registry.CORPORA, "olmo_tasks", fake(("boolq",), 30))


def test_a_joined_corpus_lists_the_documents_of_each_in_turn(two, tmp_path):
    corpus = build(DataConfig(corpus=JOINED), tmp_path)
    domains = [document.domain for document in corpus]
    assert len(corpus) == len(domains) == 110 and corpus.name == JOINED
    assert set(domains[:80]) == {"essay", "bible"} and domains[80:] == ["boolq"] * 30
    assert {"debian_prose", "olmo_tasks"} <= {p.name for p in tmp_path.iterdir()}
    assert list(corpus) == list(corpus)


def test_a_joined_corpus_has_one_tokenizer_and_all_domains(two, tmp_path):
    data = DataConfig(corpus=JOINED, bpe_vocab_size=300, validation_fraction=0.2, sequence_length=16)
    index = prepare(data, tmp_path, lambda line: None)
    assert set(index.domains) == {"essay", "bible", "boolq"}
    assert index.fingerprint == str(fingerprint(data))
    with pytest.raises(DataError, match="no domain 'novel'; it has bible, boolq, essay"):
        prepare(DataConfig(name="x", corpus=JOINED, train_domains=("novel",)), tmp_path, lambda line: None)


def test_sources_of_a_joined_corpus_are_those_of_each(two):
    corpus = sources(DataConfig(corpus=JOINED))["corpus"]
    assert corpus["debian_prose: domains"] == "essay, bible" and corpus["olmo_tasks: domains"] == "boolq"
    one, other, joined = (fingerprint(DataConfig(corpus=name)) for name in (*JOINED.split("+"), JOINED))
    assert len({one.corpus, other.corpus, joined.corpus}) == 3


@pytest.mark.parametrize(
    ("change", "megabytes"),
    [
        ({}, 6.0),
        ({"max_megabytes": 0.5}, 1.5),
        ({"train_domains": ("bible", "boolq")}, 4.0),
        ({"corpus": f"{JOINED}+python_packages"}, 6.0 + 24.0),
        ({"corpus": f"{JOINED}+python_packages", "train_domains": ("boolq",)}, 2.0),
    ],
)
def test_rough_size_of_a_joined_corpus_adds_up(two, change, megabytes):
    assert rough_bytes(DataConfig(**({"corpus": JOINED} | change))) == pytest.approx(megabytes * 1e6)


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ("debian_prose+wikipedia", "'wikipedia' can't be joined; only python_packages, debian_prose, olmo_tasks can"),
        ("debian_prose+text_files", "'text_files' can't be joined"),
        ("debian_prose+", "'' can't be joined"),
        ("olmo_tasks+olmo_tasks", "olmo_tasks and olmo_tasks both have a domain 'boolq'"),
    ],
)
def test_corpora_that_cannot_be_joined_are_refused(two, corpus, message, tmp_path):
    for use in (fingerprint, lambda data: build(data, tmp_path), rough_bytes):
        with pytest.raises(DataError, match=message):
            use(DataConfig(corpus=corpus))


def test_domains_in_two_joined_corpora_are_refused(two, monkeypatch):
    monkeypatch.setitem(registry.CORPORA, "olmo_tasks", fake(("code",), 3))
    with pytest.raises(
        DataError, match="python_packages and olmo_tasks both have a domain 'code'; prepare one of them"
    ):
        fingerprint(DataConfig(corpus="python_packages+olmo_tasks"))


def test_all_built_in_corpora_can_be_joined():
    assert registry.parts("+".join(registry.CORPORA)) == tuple(registry.CORPORA)
    assert {e.domain for e in python_packages.examples(0.05)} <= set(registry.domains("python_packages"))
