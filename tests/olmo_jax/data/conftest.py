"""A small corpus of two domains, prepared once."""

import json

import pytest

from olmo_jax.config import DataConfig
from olmo_jax.data.prepare import prepare

TEXT = "the naïve cat — 東京 🐈 — sat on a mat while it rained and seven other animals looked at its shiny new hat"
WORDS = TEXT.split()


def sentences(domain: str, count: int) -> list[str]:
    """Return distinct documents of 5 to 54 words."""
    return [
        " ".join([domain, str(i), *(WORDS[(i * 7 + j * (i % 5 + 1)) % len(WORDS)] for j in range(3 + i % 50))])
        for i in range(count)
    ]


@pytest.fixture(scope="session")
def story_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "stories.jsonl"
    rows = [{"body": text, "kind": kind} for kind in ("fable", "news") for text in sentences(kind, 120)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def story_config(story_file):
    return DataConfig(
        name="stories",
        corpus="text_files",
        files=(str(story_file),),
        text_field="body",
        domain_field="kind",
        bpe_vocab_size=300,
        validation_fraction=0.2,
        sequence_length=16,
    )


@pytest.fixture(scope="session")
def stories(story_config, tmp_path_factory):
    """The TokenIndex of `story_config`."""
    return prepare(story_config, tmp_path_factory.mktemp("prepared"), lambda line: None)
