import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from olmo_jax.data.tokenizer import train_bpe
from olmo_jax.data.tokenizing import word_cache
from olmo_jax.data.tokenizing.word_cache import WordCache, suits

CODE = Path(__file__).read_text(encoding="utf-8")
# Texts on which a wrong split would show: contractions, all kinds of white space, non-ASCII letters and marks.
SPACES = [" ", "  ", "\n", "\n\n", "\t", "\r\n", "\x0b", "\x1c", "\x85", "\xa0", "\u2003"]
LETTERS = ["a", "Z", "é", "e\u0301", "ß", "ǅ", "東京", "7", "٣", "½"]
NASTY = [*SPACES, *LETTERS, "'", "'s", "'ll", "don't", "('s", "_", "(", "::", "~", "\x7f", "\0", "🐈\u200d⬛", "\ufeff"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe([CODE, *("".join(NASTY[i:] + NASTY[:i]) for i in range(len(NASTY)))] * 2, 700, "<|endoftext|>")


@pytest.fixture(scope="module")
def whole(tokenizer):
    """The library's tokens of each text, taken whole."""
    backend = Tokenizer.from_str(json.dumps(parts(tokenizer)))
    backend.encode_special_tokens = True
    return lambda texts: [np.array(e.ids, np.uint32) for e in backend.encode_batch(texts, add_special_tokens=False)]


def parts(tokenizer):
    return json.loads(tokenizer._json())


@given(st.lists(st.lists(st.sampled_from(NASTY) | st.text(max_size=2), max_size=30).map("".join), max_size=4))
@settings(max_examples=400, deadline=None)
def test_cached_words_give_the_tokens_of_whole_texts(whole, texts):
    for tokens_L, expected_L in zip(WordCache(whole).encode(texts), whole(texts), strict=True):
        np.testing.assert_array_equal(tokens_L, expected_L)


def test_cached_words_match_on_code_prose_and_the_special_token(tokenizer, whole):
    texts = [
        CODE,
        "It's 'so' - she'll say: \"we've\n\n  been there\"  ",
        "<|endoftext|> x",
        "",
        " " * 5000,
        "東京" * 500,
    ]
    for encode in (WordCache(whole).encode, tokenizer.encode):
        for tokens_L, expected_L in zip(encode(texts), whole(texts), strict=True):
            assert tokens_L.dtype == np.uint32
            np.testing.assert_array_equal(tokens_L, expected_L)


def test_a_cached_word_is_tokenised_once(whole, monkeypatch):
    tokenised = []
    cache = WordCache(lambda texts: tokenised.extend(texts) or whole(texts))
    cache.encode(["the cat sat", "the cat sat"])
    cache.encode(["the cat ran"])
    assert sorted(tokenised) == [" cat", " ran", " sat", "the"]
    monkeypatch.setattr(word_cache, "_MOST_BYTES", 0)
    cache.encode(["a cat"])
    (tokens_L,) = cache.encode(["the cat"])
    assert tokenised.count(" cat") == 2
    np.testing.assert_array_equal(tokens_L, whole(["the cat"])[0])


def test_only_tokenizers_with_gpt_2_pre_tokenisation_use_the_cache(tokenizer):
    assert suits(parts(tokenizer))

    def changed(change):
        backend = Tokenizer.from_str(json.dumps(parts(tokenizer)))
        change(backend)
        return json.loads(backend.to_str())

    def in_digits(backend):
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])

    for change in (
        in_digits,
        lambda backend: setattr(backend, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
        lambda backend: setattr(backend, "pre_tokenizer", pre_tokenizers.ByteLevel(False, use_regex=False)),
        lambda backend: setattr(backend, "pre_tokenizer", pre_tokenizers.Whitespace()),
        lambda backend: setattr(backend, "normalizer", normalizers.NFC()),
        lambda backend: backend.add_tokens([AddedToken("the cat", normalized=False)]),
        lambda backend: setattr(backend, "model", models.WordLevel({"a": 0, "<|endoftext|>": 1}, unk_token="a")),
    ):
        assert not suits(changed(change))
