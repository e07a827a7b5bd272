"""prepare: from the sources of a corpus to token shards, once.

`<root>/<name>/` holds corpus/ (the TFDS data set), tokenizer.json, the shards and index.json. All of it is written in a
sibling folder and appears by one rename: what a kill leaves behind is that sibling, which the next call clears away.
"""

import contextlib
import fcntl
import hashlib
import itertools
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from olmo_jax.config import DataConfig
from olmo_jax.data import DataError, python_packages, text_files
from olmo_jax.data.shards import INDEX_FILE, ShardWriter, TokenIndex
from olmo_jax.data.windows import too_few_tokens
from olmo_jax.identity import canonical_json

if TYPE_CHECKING:
    from olmo_jax.data.corpus import Corpus
    from olmo_jax.data.tokenizer import Tokenizer

_DOCUMENTS_AT_ONCE = 256
_REPORT_EVERY = 64e6  # bytes of text


class Fingerprint(NamedTuple):
    """What prepared data are made from: the corpus with its split, and the tokenizer. `str` is "<12 hex>-<12 hex>"."""

    corpus: str
    tokenizer: str

    def __str__(self) -> str:
        return f"{self.corpus[:12]}-{self.tokenizer[:12]}"


def fingerprint(data: DataConfig) -> Fingerprint:
    """Identifies the data that `prepare` would write, from the sources alone; where they lie doesn't enter.

    Two hexadecimal SHA-256. Raises DataError for sources that aren't there.
    """
    corpus, tokenizer = _sources(data)
    return Fingerprint(_sha256(corpus), _sha256(tokenizer))


def prepare(data: DataConfig, root: Path, progress: Callable[[str], None]) -> TokenIndex:
    """Writes `<root>/<data.name>/` and returns its index; done already from the same sources, only reads it.

    Args:
      progress: takes a line of text at a time.

    Raises DataError for sources that can't be read, for prepared data of other sources under this name (both
    fingerprints are shown, nothing is touched), for unknown `train_domains`, for a train domain without validation
    text, and for a training split shorter than one window.
    """
    final = root / data.name
    root.mkdir(parents=True, exist_ok=True)
    with _alone(root / f".{data.name}.lock", progress):
        if (final / INDEX_FILE).exists():
            index = TokenIndex.load(final)
            _check_same(index, data)
        elif final.exists():
            raise DataError(f"{final}: exists without {INDEX_FILE}, so it isn't prepared data; move it away or choose "
                            "another data.name")  # fmt: skip
        else:
            partial = root / f".{data.name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                _write(data, partial, progress)
                partial.rename(final)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            index = TokenIndex.load(final)
    _check_usable(index, data)
    return index


def summary(index: TokenIndex) -> list[str]:
    """A table, a line an entry: MB, documents and tokens of each split and domain."""
    width = max(len("domain"), *(len(s.domain) for s in index.shards))
    rows = [f"{'split':10} {'domain':{width}} {'MB':>8} {'documents':>10} {'tokens':>12} {'bytes/token':>11}"]
    for s in index.shards:
        ratio = s.bytes / max(1, s.tokens)
        rows.append(
            f"{s.split:10} {s.domain:{width}} {s.bytes / 1e6:8.2f} {s.documents:10,} {s.tokens:12,} {ratio:11.2f}"
        )
    return rows


def split_of(text: str, validation_fraction: float) -> str:
    """Which split a document is in, by its content alone: equal documents are never on both sides."""
    share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    return "validation" if share < validation_fraction else "train"


def _sources(data: DataConfig) -> tuple[dict[str, str], dict[str, str]]:
    """What the two halves of the fingerprint stand for, named, so that a change can be named too."""
    if data.corpus == "python_packages":
        corpus = python_packages.sources(data.max_megabytes)
    elif data.corpus == "text_files":
        corpus = text_files.sources(data.files, data.text_field, data.domain_field)
    else:
        from olmo_jax.data.corpus import sources_on_disk

        corpus = sources_on_disk(data)
    corpus["validation_fraction"] = repr(data.validation_fraction)
    tokenizer = {"eos_token": data.eos_token}
    if data.tokenizer == "bpe":
        tokenizer["bpe_vocab_size"] = str(data.bpe_vocab_size)
        tokenizer["bpe trained on"] = ", ".join(sorted(set(data.train_domains))) or "all domains"
    else:
        path = Path(data.tokenizer).expanduser()
        if not path.is_file():
            raise DataError(f"data.tokenizer = {data.tokenizer!r}: no such file; name a tokenizer.json, or 'bpe'")
        tokenizer["tokenizer.json"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return corpus, tokenizer


def _sha256(values: dict[str, str]) -> str:
    return hashlib.sha256(canonical_json(values).encode()).hexdigest()


def _write(data: DataConfig, directory: Path, progress: Callable[[str], None]) -> None:
    from olmo_jax.data.corpus import build  # TFDS and grain take a second to import, and most calls find all done

    sources = dict(zip(("corpus", "tokenizer"), _sources(data), strict=True))
    print_ = fingerprint(data)
    progress(f"prepare {data.name}: reading the corpus {data.corpus}")
    corpus = build(data, directory / "corpus")
    _check_domains(data, corpus)
    tokenizer = _tokenizer(data, corpus, progress)
    tokenizer.save(directory / "tokenizer.json")
    with ShardWriter(directory, tokenizer.vocab_size, tokenizer.eos_id) as writer:
        _write_shards(data, corpus, tokenizer, writer, progress)
    index = TokenIndex(
        directory=directory,
        dtype=writer.dtype,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        tokenizer_sha256=tokenizer.sha256,
        fingerprint=str(print_),
        sources={f"{half}: {key}": value for half, values in sources.items() for key, value in values.items()},
        shards=writer.shards(),
    )
    _check_usable(index, data)
    index.save()
    for line in summary(index):
        progress(line)


def _check_domains(data: DataConfig, corpus: "Corpus") -> None:
    count = Counter(document.domain for document in corpus)
    unknown = [name for name in data.train_domains if name not in count]
    if unknown:
        raise DataError(f"data.train_domains: the corpus {data.corpus} has no domain {', '.join(map(repr, unknown))}; "
                        f"it has {', '.join(sorted(count))}")  # fmt: skip


def _tokenizer(data: DataConfig, corpus: "Corpus", progress: Callable[[str], None]) -> "Tokenizer":
    from olmo_jax.data import tokenizer

    if data.tokenizer != "bpe":
        return tokenizer.load(Path(data.tokenizer).expanduser(), data.eos_token)
    progress(f"prepare {data.name}: training a BPE of {data.bpe_vocab_size} tokens")
    training = (
        document.text
        for document in corpus
        if split_of(document.text, data.validation_fraction) == "train"
        and (not data.train_domains or document.domain in data.train_domains)
    )
    return tokenizer.train_bpe(training, data.bpe_vocab_size, data.eos_token)


def _write_shards(
    data: DataConfig, corpus: "Corpus", tokenizer: "Tokenizer", writer: ShardWriter, progress: Callable[[str], None]
) -> None:
    done, reported = 0, 0.0
    for documents in _portions(corpus, _DOCUMENTS_AT_ONCE):
        for document, tokens_L in zip(documents, tokenizer.encode([d.text for d in documents]), strict=True):
            split = split_of(document.text, data.validation_fraction)
            size = len(document.text.encode())
            writer.add(split, document.domain, tokens_L, size)
            done += size
        if done - reported >= _REPORT_EVERY:
            reported = done
            progress(f"prepare {data.name}: {done / 1e6:,.0f} MB tokenised")


def _check_usable(index: TokenIndex, data: DataConfig) -> None:
    """What training needs of prepared data, whoever prepared it."""
    for domain in data.train_domains or index.domains:
        for split, remedy in (("validation", "raise"), ("train", "lower")):
            if not index.shard(split, domain).documents:
                raise DataError(
                    f"{index.directory}: domain {domain!r} has no document in its {split} split; add documents, "
                    f"{remedy} data.validation_fraction = {data.validation_fraction}, or leave the domain out of "
                    "data.train_domains"
                )
    if message := too_few_tokens(index, data.train_domains, data.sequence_length):
        raise DataError(message)


def _check_same(index: TokenIndex, data: DataConfig) -> None:
    now = fingerprint(data)
    if index.fingerprint == str(now):
        return
    sources = dict(zip(("corpus", "tokenizer"), _sources(data), strict=True))
    values = {f"{half}: {key}": value for half, named in sources.items() for key, value in named.items()}
    changed = [
        f"{key} was {index.sources.get(key, 'absent'):.40}, is {values.get(key, 'absent'):.40}"
        for key in sorted(index.sources.keys() | values.keys())
        if index.sources.get(key) != values.get(key)
    ]
    more = f"; and {len(changed) - 4} more" if len(changed) > 4 else ""
    raise DataError(
        f"{index.directory}: prepared from {index.fingerprint}, but the sources now are {now} "
        f"({'; '.join(changed[:4])}{more}); choose another data.name or --workdir, or restore the sources"
    )


def _portions(documents: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(documents)
    while portion := list(itertools.islice(iterator, size)):
        yield portion


@contextlib.contextmanager
def _alone(lock: Path, progress: Callable[[str], None]) -> Iterator[None]:
    """Holds `lock`; the system lets go of it when the process ends, however it ends."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"{lock}: another process prepares this data; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
