import pytest
from tokenizers import pre_tokenizers

from olmo_jax.data.tokenizer import train_bpe
from olmo_jax.data.tokenizing.words import LONGEST, bounded

EOS = "<|endoftext|>"
ORDINARY = [
    "the naïve cat — 東京 🐈 — sat\r\n\r\n   on a mat_of_7 " * 500,
    "東京は、" * 4000,  # no white space, yet no long word
    "0x1f, " * 5000,
    "if x:\n" + " " * 3000 + "y = 1\n" + "=" * (LONGEST // 2 - 1),
]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_unchanged(text):
    assert list(bounded(text)) == [text]


def test_cutting_long_words_keeps_the_vocabulary_of_ordinary_text():
    plain = train_bpe(ORDINARY, 600, EOS)
    assert train_bpe((part for text in ORDINARY for part in bounded(text)), 600, EOS).sha256 == plain.sha256


@pytest.mark.parametrize("unit", ["ACGT", "7", "-=", " ", " \n", "東", "½"])
@pytest.mark.parametrize("around", [("", ""), ("words before ", " and after")])
def test_long_words_are_cut_without_loss(unit, around):
    text = around[0] + unit * (5 * LONGEST) + around[1]
    parts = list(bounded(text))
    assert "".join(parts) == text
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    lengths = [end - start for part in parts for _, (start, end) in words.pre_tokenize_str(part)]
    assert max(lengths) <= LONGEST + 1  # and the space that may precede a word
