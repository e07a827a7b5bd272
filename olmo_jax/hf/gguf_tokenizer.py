"""The tokenizer in a GGUF file's metadata, rebuilt as the tokenizer.json that it was converted from.

The format keeps the vocabulary, merges or scores, and the name of a rule for splitting text; the rules themselves are
part of llama.cpp, and those below are rebuilt here.
"""

from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from olmo_jax.config.validation import ConfigError
from olmo_jax.errors import brief
from olmo_jax.storage.gguf import open_gguf

_CONTROL, _USER_DEFINED = 3, 4  # kinds of token
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def tokenizer_of(path: epath.PathLike) -> str:
    """Return the tokenizer.json of a GGUF file's model.

    Raises:
      WeightsError: a file that can't be read. ConfigError: no tokenizer, or one that can't be rebuilt.
    """
    metadata = open_gguf(path).metadata
    kind, rule = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    tokens, kinds = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    build = {"gpt2": _byte_level, "llama": _sentence_piece}.get(str(kind))
    if build is None or (build is _byte_level and rule not in _SPLITS) or not isinstance(tokens, list):
        raise ConfigError(
            f"{path}: its tokenizer ({kind!r}, splitting text by {rule!r}) can't be rebuilt; those known are 'gpt2' "
            f"with {', '.join(_SPLITS)}, and 'llama'; name the model's tokenizer.json in --config.train.data.tokenizer "
            "(olmo-jax geometry needs none)"
        )
    try:
        backend = build(metadata, tokens, rule)
        added = [i for i, kind in enumerate([] if kinds is None else kinds) if kind in (_CONTROL, _USER_DEFINED)]
        _add(backend, tokens, added, kinds)
    except Exception as error:  # noqa: BLE001  the binding raises bare Exception
        raise ConfigError(f"{path}: its tokenizer is inconsistent ({brief(error)}); download it again") from error
    return backend.to_str()


def _add(backend: Any, tokens: Sequence[str], added: Sequence[int], kinds: Any) -> None:
    from tokenizers import AddedToken

    backend.add_tokens([
        AddedToken(tokens[i], special=bool(kinds[i] == _CONTROL), normalized=False) for i in added
    ])  # fmt: skip


def _split(pattern: str) -> Callable[[], Any]:
    def build() -> Any:
        from tokenizers import Regex, pre_tokenizers

        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    return build


def _words() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _words_and_digits() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _words()])


_SPLITS: dict[str, Callable[[], Any]] = {
    "default": _words,
    "gpt-2": _words,
    "olmo": _words,
    "smollm": _words_and_digits,
    "llama-bpe": _split(_LLAMA3),
    "dbrx": _split(_LLAMA3),  # OLMo-2's
    "qwen2": _split(_QWEN2),
}


def _byte_level(metadata: dict[str, Any], tokens: Sequence[str], rule: str) -> Any:
    """Return a byte-level BPE tokenizer like GPT-2's."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=rule == "llama-bpe"))
    if rule == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _SPLITS[rule]()
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentence_piece(metadata: dict[str, Any], tokens: Sequence[str], _rule: str) -> Any:
    """Return, as merges, SentencePiece's BPE, which joins the two neighbours whose union has the highest score."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = {token: i for i, token in enumerate(tokens)}
    scores = metadata["tokenizer.ggml.scores"]
    merges = []
    for i in sorted(range(len(tokens)), key=lambda i: (-scores[i], i)):
        token = tokens[i]
        halves = ((token[:k], token[k:]) for k in range(1, len(token)))
        pairs = [(a, b) for a, b in halves if a in vocabulary and b in vocabulary]
        merges += sorted(pairs, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    unknown = tokens[metadata.get("tokenizer.ggml.unknown_token_id", 0)]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = [normalizers.Prepend("▁")] if metadata.get("tokenizer.ggml.add_space_prefix", True) else []
    backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend
