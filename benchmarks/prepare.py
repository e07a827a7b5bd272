"""Measure how fast `prepare` makes token shards from text, in total and per core.

    python -m benchmarks.prepare                            (200 MB of Python sources; 2 minutes on 2 cores)
    python -m benchmarks.prepare --files='texts/*.jsonl' --bpe_megabytes=20 --bpe_vocab_size=4096
    python -m benchmarks.prepare --json=benchmarks/results/prepare.json

It measures `prepare` from beginning to end; tokenising with a finished tokenizer; a single process that tokenises,
which gives MB/s per core; and the CPU time of the one process that reads for the others and writes what they return.
From the last two follows what 800 GB would take on 64 cores: tokenising is shared among the cores, reading and
writing are not.
"""

import argparse
import itertools
import json
import platform
import random
import resource
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from olmo_jax.config import DataConfig
from olmo_jax.data.prepare import prepare
from olmo_jax.data.shards import ShardWriter
from olmo_jax.data.sources import text_files
from olmo_jax.data.sources.text_corpus import TextCorpus
from olmo_jax.data.tokenizer import Tokenizer, of_prepared
from olmo_jax.data.tokenizing import stream, workers
from olmo_jax.data.tokenizing.encoded import Encode
from olmo_jax.files import write_json

_LATER_BYTES, _LATER_CORES = 800e9, 64
_ONE_CORE_BYTES = 30e6
_CHANGED_WORDS = 30  # one word in this many is changed each time a source is repeated


def sources() -> list[Path]:
    """Return the sources of the standard library and of the installed packages, in a random but fixed order."""
    folders = {sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")}
    paths = {path for folder in folders for path in Path(folder).rglob("*.py") if 500 < path.stat().st_size < 200_000}
    return random.Random(0).sample(sorted(paths), len(paths))


def varied(paths: list[Path], size: float) -> Iterator[str]:
    """Yield the texts repeatedly, each time with other words changed, until there are `size` bytes."""
    rng = random.Random(0)
    done = 0
    for path in itertools.cycle(paths):
        words = path.read_text(encoding="utf-8", errors="ignore").split(" ")
        for _ in range(len(words) // _CHANGED_WORDS):
            words[rng.randrange(len(words))] += str(rng.randrange(1000))
        text = " ".join(words)
        yield text
        done += len(text.encode())
        if done >= size:
            return


def written(path: Path, megabytes: float) -> Path:
    """Write a .jsonl file of this much text, and return its path."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in varied(sources(), megabytes * 1e6))
    return path


def one_core(data: DataConfig, tokenizer: Tokenizer) -> float:
    """Return MB/s of one process that parses, splits and tokenises, by its CPU time, with a warm cache of words."""
    job = Encode(tokenizer, data.validation_fraction, np.dtype("<u2"))
    sizes, seconds = [], []
    for portion in TextCorpus(data, text_files.find(data.files)).portions(print):
        begun = time.process_time()
        sizes.append(int(job(portion).sizes_N.sum()))
        seconds.append(time.process_time() - begun)
        if sum(sizes) > _ONE_CORE_BYTES:
            break
    half = len(sizes) // 2
    return sum(sizes[half:]) / 1e6 / sum(seconds[half:])


def streamed(data: DataConfig, tokenizer: Tokenizer, text_bytes: float) -> tuple[float, float]:
    """Return the wall-clock seconds of reading, tokenising and writing, and the CPU seconds of the reading process."""
    corpus = TextCorpus(data, text_files.find(data.files))
    with tempfile.TemporaryDirectory() as folder:
        clock, cpu = time.monotonic(), time.process_time()
        with ShardWriter(Path(folder), tokenizer.vocab_size, tokenizer.eos_id) as writer:
            stream.write(corpus, data, tokenizer, text_bytes, Path(folder), lambda line: None, writer)
        return time.monotonic() - clock, time.process_time() - cpu


def measured(data: DataConfig, root: Path) -> dict[str, float | str]:
    """Return what is measured, by name; MB are 1e6 bytes of text in UTF-8."""
    begun = time.monotonic()
    index = prepare(data, root, lambda line: print(f"{time.monotonic() - begun:6.1f} s  {line}", flush=True))
    seconds = time.monotonic() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    tokenizer = of_prepared(index.directory, index.eos_id)
    text_bytes = float(sum(shard.bytes for shard in index.shards))
    of_stream, of_reader = streamed(data, tokenizer, text_bytes)
    each, reader = one_core(data, tokenizer), text_bytes / 1e6 / of_reader
    later = _LATER_BYTES / 1e6 / min(_LATER_CORES * each, reader)
    return {
        "processor": platform.machine(),
        "cores": workers.cores(),
        "MB": text_bytes / 1e6,
        "seconds of prepare": seconds,
        "seconds of tokenising": of_stream,
        "MB/s of tokenising": text_bytes / 1e6 / of_stream,
        "MB/s of one core": each,
        "MB/s that one process can read and write": reader,
        f"hours for 800 GB on {_LATER_CORES} cores, once there is a tokenizer": later / 3600,
        "peak MB of the reading process, which also trains the BPE": peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", help="a path or pattern of text files (default: made from Python sources)")
    parser.add_argument("--megabytes", type=float, default=200.0, help="size of the text to make (default: 200)")
    parser.add_argument("--bpe_megabytes", type=float, default=20.0)
    parser.add_argument("--bpe_vocab_size", type=int, default=4096)
    parser.add_argument("--text_field", default="text")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = asked.files or str(written(Path(folder) / "text.jsonl", asked.megabytes))
        data = DataConfig(
            corpus="text_files",
            files=(files,),
            text_field=asked.text_field,
            bpe_megabytes=asked.bpe_megabytes,
            bpe_vocab_size=asked.bpe_vocab_size,
        )
        numbers = measured(data, Path(folder) / "data")
    for name, value in numbers.items():
        print(f"{name}: {value:.3g}" if isinstance(value, float) else f"{name}: {value}")
    if asked.json:
        write_json(asked.json, numbers)


if __name__ == "__main__":
    main()
