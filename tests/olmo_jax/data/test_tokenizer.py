import numpy as np
import pytest

from olmo_jax.data import DataError
from olmo_jax.data.tokenizer import load, train_bpe

EOS = "<|endoftext|>"
TEXTS = ["the cat sat on the mat", "das Mädchen, 東京 and 🐈‍⬛!", "def f(x):\n\treturn  x\r\n", "\x00\u200b \ufffd"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(TEXTS[:1] * 10, 280, EOS)


def test_round_trip_of_any_unicode(tokenizer):
    for text, tokens in zip(TEXTS, tokenizer.encode(TEXTS), strict=True):
        assert tokenizer.decode(tokens) == text
        assert tokens.max() < tokenizer.vocab_size


def test_eos_is_token_zero_and_no_text_becomes_it(tokenizer):
    text = f"before {EOS} after"
    (tokens,) = tokenizer.encode([text])
    assert tokenizer.eos_id == 0
    assert 0 not in tokens
    assert tokenizer.decode(tokens) == text


def test_the_same_texts_give_the_same_tokenizer(tokenizer):
    assert train_bpe(TEXTS[:1] * 10, 280, EOS).sha256 == tokenizer.sha256


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = load(tmp_path / "tokenizer.json", EOS)
    assert loaded.sha256 == tokenizer.sha256
    np.testing.assert_array_equal(loaded.encode(TEXTS[1:2])[0], tokenizer.encode(TEXTS[1:2])[0])


def test_bad_tokenizer_files(tokenizer, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "missing.json", EOS)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(DataError, match="isn't a tokenizer.json"):
        load(tmp_path / "bad.json", EOS)
    tokenizer.save(tmp_path / "tokenizer.json")
    with pytest.raises(DataError, match="no token '</s>'; name its end-of-text token in data.eos_token"):
        load(tmp_path / "tokenizer.json", "</s>")
