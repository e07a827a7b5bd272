"""Prepare a corpus: tokenise its text once and write token shards.

`<root>/<name>/` holds tokenizer.json, the shards and index.json, and corpus/ (the TFDS data set) if the corpus comes
with the library. The folder appears by one rename (see files.whole_folder); what a killed process leaves behind is
removed by the next call.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from olmo_jax.config.data import DataConfig
from olmo_jax.data import DataError, some_of
from olmo_jax.data.fingerprint import Fingerprint, changes, fingerprint, fingerprint_of, sources
from olmo_jax.data.shards import INDEX_FILE, ShardWriter, TokenIndex
from olmo_jax.data.sources import downloads, text_files
from olmo_jax.data.sources.text_corpus import Counting, TextCorpus
from olmo_jax.data.splits import split_of
from olmo_jax.data.tokenizing.portions import Corpus
from olmo_jax.data.tokenizing.sample import Sample, scan
from olmo_jax.data.tokenizing.words import bounded
from olmo_jax.data.windows import too_few_tokens
from olmo_jax.files import whole_folder
from olmo_jax.signals import ended_by_signals, waited_for
from olmo_jax.storage.lock import exclusive_lock
from olmo_jax.storage.paths import local

if TYPE_CHECKING:
    from olmo_jax.data.tokenizer import Tokenizer

__all__ = ["Fingerprint", "fingerprint", "prepare", "summary"]


def prepare(data: DataConfig, root: Path, progress: Callable[[str], None]) -> TokenIndex:
    """Write `<root>/<data.name>/` and return its index; data already written from the same sources are only read.

    SIGINT and SIGTERM end the preparation at once, as KeyboardInterrupt, and remove what was written.

    Args:
      progress: called with one line of text at a time.

    Raises DataError for sources that can't be read, data prepared from other sources under this name (both
    fingerprints are shown and nothing is changed), unknown `train_domains`, a domain without documents in one of the
    splits, a sample too small for the tokenizer's vocabulary, and a training split shorter than one window.
    """
    final = root / data.name
    root.mkdir(parents=True, exist_ok=True)
    with ended_by_signals(), exclusive_lock(root / f".{data.name}.lock", progress):
        if (final / INDEX_FILE).exists():
            index = TokenIndex.load(final)
            _check_same(index, data)
        elif final.exists():
            raise DataError(f"{final}: exists without {INDEX_FILE}, so it isn't prepared data; move it away or choose "
                            "another data.name")  # fmt: skip
        else:
            with whole_folder(final) as partial:
                _write(data, partial, progress)
            index = TokenIndex.load(final)
    _check_usable(index, data)
    return index


def summary(index: TokenIndex) -> list[str]:
    """Return the lines of a table: MB, documents, tokens and bytes per token of each split and domain."""
    width = max(len("domain"), *(len(s.domain) for s in index.shards))
    rows = [f"{'split':10} {'domain':{width}} {'MB':>8} {'documents':>10} {'tokens':>12} {'bytes/token':>11}"]
    for s in index.shards:
        ratio = s.bytes / max(1, s.tokens)
        rows.append(
            f"{s.split:10} {s.domain:{width}} {s.bytes / 1e6:8.2f} {s.documents:10,} {s.tokens:12,} {ratio:11.2f}"
        )
    return rows


def _write(data: DataConfig, directory: Path, progress: Callable[[str], None]) -> None:
    def say(line: str) -> None:
        progress(f"prepare {data.name}: {line}")

    files = text_files.find(data.files) if data.corpus == "text_files" else ()
    described = sources(data, files)
    say(f"reading the corpus {data.corpus}")
    write_shards: Callable[[ShardWriter], None]
    if data.is_arithmetic:
        from olmo_jax.data.sources import arithmetic

        tokenizer = arithmetic.tokenizer(data.arithmetic)
        write_shards = functools.partial(_write_equations, data)
    else:
        from olmo_jax.data.tokenizing import (
            stream,  # imports the tokenizer library, which a call doesn't need if the data are prepared already
        )

        corpus = _corpus(data, directory, files)
        text_bytes, sample = _scanned(data, corpus)
        tokenizer = _tokenizer(data, corpus, sample, say)
        text_bytes = text_bytes or corpus.rough_bytes()
        write_shards = functools.partial(stream.write, corpus, data, tokenizer, text_bytes, directory, say)
    tokenizer.save(directory / "tokenizer.json")
    with ShardWriter(directory, tokenizer.vocab_size, tokenizer.eos_id) as writer:
        write_shards(writer)
    index = TokenIndex(
        directory=directory,
        dtype=writer.dtype,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        tokenizer_sha256=tokenizer.sha256,
        fingerprint=str(fingerprint_of(described)),
        sources=described,
        shards=writer.shards(),
    )
    _check_usable(index, data)
    index.save()
    for line in summary(index):
        progress(line)


def _corpus(data: DataConfig, directory: Path, files: Sequence[text_files.Source]) -> Corpus:
    if data.corpus == "text_files":
        return TextCorpus(data, files)
    from olmo_jax.data.corpus import build  # imports TFDS, which takes half a second

    return build(data, directory / "corpus")


def _scanned(data: DataConfig, corpus: Corpus) -> tuple[float, Sample | None]:
    """Return the bytes of text (0 if the corpus isn't read) and the sample to train the tokenizer on.

    The sample is None if the tokenizer is trained on all documents, or not trained. Raises DataError for unknown
    `train_domains`.
    """
    sampled = data.tokenizer == "bpe" and data.bpe_megabytes > 0
    if not data.train_domains and not sampled:
        return 0.0, None
    bytes_of, sample = scan(corpus, data)
    if unknown := [name for name in data.train_domains if name not in bytes_of]:
        raise DataError(f"data.train_domains: the corpus {data.corpus} has no domain {some_of(map(repr, unknown))}; "
                        f"it has {some_of(sorted(bytes_of))}")  # fmt: skip
    return float(bytes_of.total()), sample if sampled else None


def _tokenizer(data: DataConfig, corpus: Corpus, sample: Sample | None, say: Callable[[str], None]) -> "Tokenizer":
    from olmo_jax.data import tokenizer as tokenizers

    if data.tokenizer in downloads.OLMO_TOKENIZERS:
        return tokenizers.of_olmo(data.tokenizer, data.eos_token)
    if data.tokenizer != "bpe":
        return tokenizers.load(local(data.tokenizer), data.eos_token)
    sample_size = "" if sample is None or sample.whole else f" on {data.bpe_megabytes:,g} MB"
    say(f"training a BPE of {data.bpe_vocab_size} tokens{sample_size}")
    texts = _training_texts(data, corpus) if sample is None else sample.texts()

    def interruptible(check: Callable[[], None]) -> Iterator[str]:
        for text in texts:
            check()
            for part in bounded(text):
                check()
                yield part

    trained = waited_for(lambda check: tokenizers.train_bpe(interruptible(check), data.bpe_vocab_size, data.eos_token))
    if sample is not None and not sample.whole and trained.vocab_size < data.bpe_vocab_size:
        raise DataError(
            f"data.bpe_megabytes = {data.bpe_megabytes}: this much text gives a tokenizer of only "
            f"{trained.vocab_size} tokens, but data.bpe_vocab_size = {data.bpe_vocab_size}; raise data.bpe_megabytes, "
            "or set it to 0 for all of the text"
        )
    return trained


def _training_texts(data: DataConfig, corpus: Corpus) -> Iterator[str]:
    counting = Counting(data.text_field, lambda line: None)
    for portion in corpus.portions(lambda line: None):
        content = portion.content()
        counting.add(content.tally)
        for document in content.documents:
            chosen = not data.train_domains or document.domain in data.train_domains
            if chosen and split_of(document.text, data.validation_fraction) == "train":
                yield document.text


def _write_equations(data: DataConfig, writer: ShardWriter) -> None:
    from olmo_jax.data.sources import arithmetic

    for tokens_L in arithmetic.documents(data.arithmetic):
        writer.add("train", arithmetic.DOMAIN, tokens_L, 0)


def _check_usable(index: TokenIndex, data: DataConfig) -> None:
    """Raise DataError if prepared data lack what training with this configuration needs."""
    if data.is_arithmetic:  # each run splits the equations; its configuration is checked for that
        return
    if message := _too_few_documents(index, data):
        raise DataError(message)
    if message := too_few_tokens(index, data.train_domains, data.sequence_length):
        raise DataError(message)


def _too_few_documents(index: TokenIndex, data: DataConfig) -> str:
    """Return the error message for domains without documents in one of the splits; "" if there are none."""
    problems, remedies = [], ["add documents"]
    for split, remedy in (("validation", "raise"), ("train", "lower")):
        lacking = [name for name in data.train_domains or index.domains if not index.shard(split, name).documents]
        if lacking:
            also = f", nor have {len(lacking) - 1} others ({some_of(map(repr, lacking[1:]), 5)})" if lacking[1:] else ""
            problems.append(f"domain {lacking[0]!r} has no document in its {split} split{also}")
            remedies.append(f"{remedy} data.validation_fraction = {data.validation_fraction}")
    if not problems:
        return ""
    if data.corpus == "text_files":
        remedies.append("divide documents by data.document_separator (.txt only) or data.block_characters")
    return f"data.train_domains: {'; '.join(problems)}; {', '.join(remedies)}, or leave such domains out"


def _check_same(index: TokenIndex, data: DataConfig) -> None:
    now = sources(data)
    if index.fingerprint != str(fingerprint_of(now)):
        raise DataError(
            f"{index.directory}: prepared from {index.fingerprint}, but the sources now are {fingerprint_of(now)} "
            f"({changes(index.sources, now)}); choose another data.name or --workdir, or restore the sources"
        )
