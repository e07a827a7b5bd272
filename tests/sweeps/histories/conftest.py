"""Histories of made weights, in folders of revisions."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

ROWS, WIDTH = 2000, 64


def weights(count, seed=0):
    """Yield the tensors of each checkpoint of a training: large enough that a sample is a small share of them."""
    rng = np.random.default_rng(seed)
    embedding = rng.normal(size=(ROWS, WIDTH))
    matrices = rng.normal(size=(3, WIDTH, WIDTH))
    for _ in range(count):
        matrices += 0.1 * rng.normal(size=matrices.shape)
        yield {"lm_head.weight": embedding.astype(np.float32)} | {
            f"model.layers.{i}.mlp.weight": matrix.astype(ml_dtypes.bfloat16) for i, matrix in enumerate(matrices)
        }
        embedding = embedding + 0.01


@pytest.fixture
def history(tmp_path):
    """Return a function that makes a folder of revisions with the given steps."""

    def make(steps, seed=0, name="history"):
        for step, tensors in zip(steps, weights(len(steps), seed), strict=True):
            folder = tmp_path / name / f"step{step}"
            folder.mkdir(parents=True)
            save_file(tensors, folder / "model.safetensors")
            (folder / "config.json").write_text("{}")
        return tmp_path / name

    return make


def shard(folder):
    """Distribute the tensors of a checkpoint over two files with an index."""
    from safetensors.numpy import load_file

    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:2], "model-00002-of-00002.safetensors": names[2:]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    weight_map = {name: file for file, held in parts.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


def swap(first, second):
    aside = first.with_name("aside")
    shutil.move(first, aside)
    shutil.move(second, first)
    shutil.move(aside, second)
