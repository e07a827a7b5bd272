"""What is damaged: small valid inputs, and the commands that read them.

`make` writes the inputs of all formats, each in a folder of its own, in which its commands are run; `SUBJECTS` says
which of a folder's files are damaged, how they are to be read, and by which commands, likelier ones with more weight.
"""

import dataclasses
import gzip
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# A working directory of layout 4, its corpus and its configuration: two of four runs trained, half of them evaluated.
TRAINED = HERE.parent / "sweeps" / "planning" / "data" / "layout4.tar.xz"
RUN = "old-f4ea3a2f8aa8"


@dataclasses.dataclass(frozen=True)
class Verb:
    """A command that is run in the folder; `{file}` in it stands for the damaged file.

    may_change: patterns of files of the user's that it may write anew, for it made them or can make them again.
    seconds: after which it hangs.
    """

    arguments: str
    weight: float = 1.0
    may_change: tuple[str, ...] = ()
    seconds: float = 20.0

    @property
    def name(self) -> str:
        return self.arguments.split()[0]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A format. folder: of its inputs. files: patterns of what is damaged. kind: of mutations.KINDS."""

    folder: str
    files: tuple[str, ...]
    kind: str
    verbs: tuple[Verb, ...]


def _of_text(name: str, kind: str) -> Subject:
    config = f"--config=own.py:{name}"
    return Subject(
        "texts",
        (name,),
        kind,
        (
            Verb(f"prepare {config} --workdir=new", 4),
            Verb(f"prepare {config} --config.train.data.tokenizer=tokenizer.json --workdir=new", 4),
            Verb(f"plan {config} --json", 1),
            Verb(f"plan {config} --flops=1e9 --workdir=new", 1),
        ),
    )


_MEASURE = "--metrics=mean_cosine,effective_rank --json"
_OF_MODELS = (
    Verb(f"geometry model {_MEASURE}", 4),
    Verb("generate model --prompt=the --tokens=1", 2),
    Verb("import model --config=own.py:corpus.jsonl --workdir=new", 0.5, seconds=60),
)


def _of_gguf(verb: Verb) -> Verb:
    return dataclasses.replace(verb, arguments=verb.arguments.replace(" model ", " model.gguf "))


# Which reading commands leave as they found it; what the others may write anew is what they made.
_COMPILED = ("work/compiled/*",)
_MENDED = ("work/runs/*/config.json",)  # from sweep.json
_STATUS = Verb("status --workdir=work", 4, _MENDED)
_GEOMETRY = Verb(f"geometry work {_MEASURE}", 3)
_GENERATE = Verb(f"generate {RUN} --workdir=work --prompt=the --tokens=1", 2)
_EXPORT = Verb(f"export {RUN} --workdir=work --to=out", 2)
_PLAN = Verb("plan --config=small.py --workdir=work --flops=1e9", 1)
_PREPARED = ("work/data/*",)
_EVALUATED = ("work/runs/*/results/*", "work/sweep.json", *_MENDED, *_COMPILED)
_EVALUATE = Verb("evaluate --workdir=work --only=unigram,saturation,lm_loss", 2, _EVALUATED)
_REPORTED = ("work/results.*", "work/report/*", *_MENDED)
_REPORT = Verb("report --workdir=work", 0.1, _REPORTED, seconds=90)
_FIGURE = Verb("report --workdir=work --figure=training_loss", 0.7, _REPORTED, seconds=60)
# Cuts metrics off behind the checkpoint that it goes on from, and sets a broken checkpoint aside.
_TRAIN = Verb(
    "train --config=small.py --workdir=work",
    0.3,
    (*_EVALUATED, "work/runs/*/*", "work/cohorts/*/compute.json", "work/cohorts/*/checkpoints/*"),
    seconds=60,
)
_OF_RUNS = (_STATUS, _GEOMETRY, _GENERATE, _EXPORT, _PLAN, _EVALUATE, _REPORT, _FIGURE, _TRAIN)
_CHECKPOINT = "work/cohorts/*/checkpoints/*/"

SUBJECTS: dict[str, Subject] = {
    "jsonl": _of_text("corpus.jsonl", "jsonl"),
    "gz": _of_text("corpus.jsonl.gz", "gz"),
    "zst": _of_text("corpus.jsonl.zst", "zst"),
    "parquet": _of_text("corpus.parquet", "parquet"),
    "txt": Subject(
        "texts",
        ("texts/7.txt",),
        "text",
        (
            Verb("prepare --config=own.py:texts/*.txt --workdir=new", 4),
            Verb("plan --config=own.py:texts/*.txt --flops=1e9 --workdir=new", 1),
        ),
    ),
    "tokenizer": Subject(
        "olmo",
        ("model/tokenizer.json",),
        "json",
        (
            *_OF_MODELS,
            Verb(
                "prepare --config=own.py:corpus.jsonl --config.train.data.tokenizer=model/tokenizer.json --workdir=new",
                3,
            ),
        ),
    ),
    "config.json": Subject("olmo", ("model/config.json",), "json", _OF_MODELS),
    "config.json of OLMo-2": Subject("olmo2", ("model/config.json",), "json", _OF_MODELS),
    "config.json of GPT-NeoX": Subject("neox", ("model/config.json",), "json", _OF_MODELS),
    "config.yaml": Subject("ai2", ("model/config.yaml",), "yaml", _OF_MODELS),
    "safetensors": Subject("olmo", ("model/model.safetensors",), "safetensors", _OF_MODELS),
    "safetensors' index": Subject("neox", ("model/model.safetensors.index.json",), "json", _OF_MODELS),
    "gguf": Subject("gguf", ("model.gguf",), "bytes", tuple(map(_of_gguf, (_OF_MODELS[0], _OF_MODELS[2])))),
    "npy": Subject("npy", ("weights.npy",), "bytes", (Verb(f"geometry weights.npy {_MEASURE}"),)),
    "sweep.json": Subject("trained", ("work/sweep.json",), "json", _OF_RUNS),
    "status": Subject("trained", ("work/runs/*/status.json",), "json", (_STATUS, _REPORT, _EVALUATE, _TRAIN)),
    "run's config": Subject("trained", ("work/runs/*/config.json",), "json", _OF_RUNS),
    "results": Subject(
        "trained", ("work/runs/*/results/*.json",), "json", (_STATUS, _EVALUATE, _REPORT, _FIGURE, _TRAIN)
    ),
    "metrics": Subject(
        "trained",
        ("work/runs/*/metrics.jsonl", "work/runs/*/timings.jsonl"),
        "jsonl",
        (_STATUS, _EVALUATE, _REPORT, _FIGURE, _TRAIN),
    ),
    "compute": Subject("trained", ("work/cohorts/*/compute.json",), "json", (_STATUS, _REPORT, _EVALUATE, _TRAIN)),
    "prepared data": Subject(
        "trained",
        ("work/data/main/index.json", "work/data/main/tokenizer.json"),
        "json",
        (_STATUS, _PLAN, _EVALUATE, _GENERATE, _EXPORT, _TRAIN),
    ),
    "shards": Subject(
        "trained", ("work/data/main/*.npy", "work/data/main/*.offsets"), "bytes", (_PLAN, _EVALUATE, _TRAIN)
    ),
    "Orbax metadata": Subject(
        "trained",
        (
            f"{_CHECKPOINT}_CHECKPOINT_METADATA", f"{_CHECKPOINT}commit_success.txt", f"{_CHECKPOINT}*/_METADATA",
            f"{_CHECKPOINT}*/metadata", f"{_CHECKPOINT}*/_sharding", f"{_CHECKPOINT}*/array_metadatas/*",
        ),
        "json",
        (_STATUS, _GEOMETRY, _GENERATE, _EXPORT, _EVALUATE, _TRAIN),
    ),
    "Orbax arrays": Subject(
        "trained",
        (f"{_CHECKPOINT}*/d/*", f"{_CHECKPOINT}*/ocdbt.process_0/d/*", f"{_CHECKPOINT}*/manifest.ocdbt"),
        "bytes",
        (_STATUS, _GEOMETRY, _GENERATE, _EXPORT, _EVALUATE, _TRAIN),
    ),
    "table": Subject("tables", ("second/results.parquet",), "parquet", (Verb("compare first second --to=out"),)),
}  # fmt: skip


def make(place: Path) -> None:
    """Writes the valid inputs: a folder for each name that a Subject's `folder` says. Uses JAX."""
    rows = _texts(place / "texts")
    for name in ("olmo", "olmo2", "neox", "ai2"):
        _model(place / name, name, rows)
    _gguf(place / "gguf", rows)
    (place / "npy").mkdir()
    import numpy as np

    np.save(place / "npy" / "weights.npy", np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32))
    trained = place / "trained"
    trained.mkdir()
    with tarfile.open(TRAINED) as archive:
        archive.extractall(trained, filter="data")
    _tables(place / "tables", trained / "work")


def _texts(folder: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import zstandard

    (folder / "texts").mkdir(parents=True)
    words = ["the", "rank", "of", "a", "matrix", "is", "measured", "while", "models", "are", "trained", "on", "text"]
    rows = [
        {"text": " ".join(words[(i * k) % 13] for k in range(1, 30)), "domain": ("prose", "code")[i % 2], "id": i}
        for i in range(40)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (folder / "corpus.jsonl").write_bytes(lines)
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    (folder / "corpus.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines))
    pq.write_table(pa.Table.from_pylist(rows), folder / "corpus.parquet")
    for i, row in enumerate(rows[:24]):
        (folder / "texts" / f"{i}.txt").write_text(f"{row['text']}\n{i} e\u0301\n")
    _tokenizer(folder / "tokenizer.json", rows)
    shutil.copy(HERE / "own.py", folder)
    return rows


def _tokenizer(path: Path, rows: list[dict[str, Any]]) -> None:
    from olmo_jax.data.tokenizer import train_bpe

    train_bpe([row["text"] for row in rows], 290, "<|endoftext|>").save(path)


def _model(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """A published model of width 16, its text to be imported with, and its tokenizer."""
    import jax

    from olmo_jax import hf, model
    from olmo_jax.config.presets import OLMO, OLMO2, PYTHIA

    folder.mkdir()
    published = {"olmo": OLMO["4m"], "ai2": OLMO["4m"], "olmo2": OLMO2["14m"], "neox": PYTHIA["14m"]}[name]
    small = {"vocab_size": 290, "pad_vocab_to": 10, "d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 32}
    config = dataclasses.replace(published, **small, context_length=64)
    _tokenizer(folder / "tokenizer.json", rows)
    params = model.init(config, jax.random.key(0))
    shard_bytes = 20_000 if name == "neox" else 5e9
    hf.export_checkpoint(config, params, folder / "model", tokenizer=folder / "tokenizer.json", shard_bytes=shard_bytes)
    if name == "ai2":
        _as_ai2_wrote_it(folder / "model")
    (folder / "tokenizer.json").unlink()
    shutil.copy(HERE / "own.py", folder)
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _gguf(folder: Path, rows: list[dict[str, Any]]) -> None:
    """A Llama of width 16 in a GGUF file with its tokenizer, and its text to be imported with."""
    import jax

    from olmo_jax import hf, model
    from olmo_jax.config.model import ModelConfig
    from tests.olmo_jax.hf.gguf_files import convert, tokenizer_metadata

    folder.mkdir()
    _tokenizer(folder / "tokenizer.json", rows)
    bpe = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokens = sorted(bpe["vocab"], key=bpe["vocab"].__getitem__)
    merges = [" ".join(pair) for pair in bpe["merges"]]
    config = ModelConfig(
        vocab_size=len(tokens), pad_vocab_to=1, d_model=16, n_layers=1, n_heads=2, d_ff=32, context_length=64,
        norm="rms_norm",
    )  # fmt: skip
    hf.export_checkpoint(config, model.init(config, jax.random.key(0)), folder / "model")
    metadata = tokenizer_metadata(tokens, "gpt2", "gpt-2", ["<|endoftext|>"], tokenizer__ggml__merges=merges)
    convert(folder / "model", folder / "model.gguf", "llama", **metadata, tokenizer__ggml__eos_token_id=0)
    shutil.rmtree(folder / "model")
    (folder / "tokenizer.json").unlink()
    shutil.copy(HERE / "own.py", folder)
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _as_ai2_wrote_it(folder: Path) -> None:
    """OLMo-1's folder with AI2's original names: query, key and value stacked, and what is gated upon the gate."""
    import numpy as np
    import yaml
    from safetensors.numpy import load_file, save_file

    theirs = load_file(folder / "model.safetensors")
    block, ours = "transformer.blocks.0", "model.layers.0"
    renamed = {
        "transformer.wte.weight": ["model.embed_tokens.weight"],
        "transformer.ff_out.weight": ["lm_head.weight"],
        f"{block}.att_proj.weight": [f"{ours}.self_attn.{x}_proj.weight" for x in "qkv"],
        f"{block}.attn_out.weight": [f"{ours}.self_attn.o_proj.weight"],
        f"{block}.ff_proj.weight": [f"{ours}.mlp.up_proj.weight", f"{ours}.mlp.gate_proj.weight"],
        f"{block}.ff_out.weight": [f"{ours}.mlp.down_proj.weight"],
    }
    tensors = {name: np.concatenate([theirs[part] for part in parts]) for name, parts in renamed.items()}
    save_file(tensors, folder / "model.safetensors")
    settings = {
        "d_model": 16, "n_heads": 2, "n_layers": 1, "mlp_hidden_size": 64, "activation_type": "swiglu",
        "block_type": "sequential", "rope": True, "rope_theta": 10000, "layer_norm_type": "default",
        "layer_norm_with_affine": False, "include_bias": False, "weight_tying": False, "clip_qkv": None,
        "max_sequence_length": 64, "vocab_size": 290, "embedding_size": 290, "eos_token_id": 0,
    }  # fmt: skip
    (folder / "config.json").unlink()
    (folder / "config.yaml").write_text(yaml.safe_dump({"run_name": "small", "model": settings}))


def _tables(folder: Path, workdir: Path) -> None:
    """Two sweeps' tables alone, the second's losses a little higher."""
    from etils import epath

    from sweeps.planning.record import recorded_plan
    from sweeps.table.table import build_table, write_table

    table = build_table(epath.Path(workdir), recorded_plan(epath.Path(workdir)).evaluation)
    for name, by in (("first", 0.0), ("second", 0.125)):
        (folder / name).mkdir(parents=True)
        changed = table.copy()
        losses = [column for column in table if str(column).startswith("loss")]
        changed[losses] = table[losses] + by
        write_table(epath.Path(folder / name), changed)
