import random

import pytest

from olmo_jax.data.sources.readers.pieces import blocks, divided, with_line_feeds


@pytest.mark.parametrize("separator", ["\n\n", "<|endoftext|>", "-"])
@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_divided_as_the_whole_text_is_wherever_the_chunks_end(separator, size):
    rng = random.Random(size)
    text = "".join(rng.choice(["a", "\n", separator, separator[:-1], "<", "-"]) for _ in range(300))
    chunks = [text[at : at + size] for at in range(0, len(text), size)]
    assert list(divided(chunks, separator)) == text.split(separator)


@pytest.mark.parametrize(
    "text", ["", "short", "a line\n" * 100, "word " * 100, "x" * 1000, "a\n" + "x" * 99 + "\n" * 40]
)
def test_blocks_are_the_text_and_none_is_too_long(text):
    for most in (1, 7, 50):
        found = list(blocks(text, most))
        assert "".join(found) == text
        assert max(map(len, found)) <= most
    assert list(blocks(text, 0)) == [text]
    assert all(block.endswith(("\n", " ")) for block in list(blocks(text, 50))[:-1]) or "x" in text


def test_line_ends_become_line_feeds():
    assert "".join(with_line_feeds(["a\r", "\nb\rc", "\r"])) == "a\nb\nc\n"
