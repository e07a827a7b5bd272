import random

import pytest

from olmo_jax.data.sources.readers.pieces import blocks, divided, with_line_feeds


@pytest.mark.parametrize("separator", ["\n\n", "<|endoftext|>", "-"])
@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_division_into_documents_does_not_depend_on_chunk_boundaries(separator, size):
    rng = random.Random(size)
    text = "".join(rng.choice(["a", "\n", separator, separator[:-1], "<", "-"]) for _ in range(300))
    chunks = [text[at : at + size] for at in range(0, len(text), size)]
    assert list(divided(chunks, separator)) == text.split(separator)


@pytest.mark.parametrize(
    "text", ["", "short", "a line\n" * 100, "word " * 100, "x" * 1000, "a\n" + "x" * 99 + "\n" * 40]
)
def test_blocks_join_to_the_text_and_respect_the_maximum_length(text):
    for most in (1, 7, 50):
        pieces = list(blocks(text, most))
        assert "".join(pieces) == text
        assert max(map(len, pieces)) <= most
    assert list(blocks(text, 0)) == [text]
    assert all(block.endswith(("\n", " ")) for block in list(blocks(text, 50))[:-1]) or "x" in text


def test_line_ends_are_normalised_to_line_feeds():
    assert "".join(with_line_feeds(["a\r", "\nb\rc", "\r"])) == "a\nb\nc\n"
