"""Measure the unembeddings of a suite's models, reading only these: one row per checkpoint."""

import functools
import math
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from etils import epath

from geometry.gauge import gauge_fix
from geometry.probe import summarize
from olmo_jax.config import ConfigError
from olmo_jax.console import progress, say
from olmo_jax.errors import WeightsError
from olmo_jax.files import read_json, write_json
from olmo_jax.hf import Head, read_head
from olmo_jax.hf.settings import TOKENIZER
from olmo_jax.model import parameter_count
from sweeps.histories.choice import Revisions
from sweeps.histories.history import Checkpoint, History, lazy_tensors, open_history
from sweeps.studies.atlas.suites import Suite

METRICS = (
    "effective_rank_percent", "stable_rank", "mean_cosine", "partition_isotropy", "power_law_alpha", "spectral_norm",
)  # fmt: skip
MEASURED = "measured.json"
MATRICES = ("unembedding", "unembedding_gauge_fixed", "unembedding_folded")


def measure(suite: Suite, workdir: Path) -> pd.DataFrame:
    """Return one row per checkpoint of a suite; rows that `workdir` has from before aren't measured again.

    Columns: repository, revision, size, corpus, seed, step, tokens, parameters, d_model, and <matrix>/<metric> in
    float32. The matrices are the unembedding as it is stored, gauge-fixed (geometry.gauge), and gauge-fixed after the
    gain of the final norm is folded into it, which together with the norm's directions decides the logits.

    A checkpoint that can't be read is named on stderr and left out.

    Raises:
      HubError, WeightsError, ConfigError: a repository that can't be read; models whose vocabularies differ.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    file = workdir / MEASURED
    stored = read_json(epath.Path(file), "remove it, to measure again") if file.exists() else {}
    rows: list[dict[str, Any]] = stored["rows"] if stored.get("metrics") == list(METRICS) else []
    known = {(row["repository"], row["revision"]) for row in rows}
    sources = suite.sources()
    vocabularies: dict[int, str] = {row["vocab_size"]: row["repository"] for row in rows}
    with progress("atlas", len(sources)) as show:
        for i, source in enumerate(sources):
            history = open_history(source, Revisions(suite.revisions))
            left = [c for c in history.checkpoints if (source, c.name) not in known]
            for row in _of_history(suite, history, left):
                vocabularies.setdefault(row["vocab_size"], source)
                if len(vocabularies) > 1:
                    (a, one), (b, other) = list(vocabularies.items())[:2]
                    raise ConfigError(
                        f"{other}: has a vocabulary of {b}, and {one} one of {a}, so their unembeddings can't be "
                        "compared; measure them as two suites"
                    )
                rows.append(row)
                write_json(epath.Path(file), {"metrics": list(METRICS), "rows": rows})
            show(i + 1, source)
    wanted = {*sources}
    return with_rates(pd.DataFrame([row for row in rows if row["repository"] in wanted]))


def _of_history(suite: Suite, history: History, checkpoints: Iterable[Checkpoint]) -> Iterator[dict[str, Any]]:
    """Yield a row per checkpoint that can be read."""
    said = suite.said(history.source)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer: epath.Path | None = None
        for checkpoint in checkpoints:
            try:
                place = _settings(history, checkpoint, Path(scratch) / checkpoint.commit)
                if tokenizer is None and (place / TOKENIZER).exists():
                    tokenizer = epath.Path(place / TOKENIZER)
                head = read_head(epath.Path(place), lazy_tensors(checkpoint), tokenizer)
            except (WeightsError, ConfigError) as error:
                say(f"{history.source} at {checkpoint.name}: {error}; it is left out")
                continue
            total, _ = parameter_count(head.config)
            row = {"repository": history.source, "revision": checkpoint.name} | said
            if checkpoint.said.seed is not None:
                row["seed"] = checkpoint.said.seed
            yield (
                row
                | {
                    "step": checkpoint.step,
                    "tokens": checkpoint.said.tokens,
                    "parameters": total,
                    "d_model": head.config.d_model,
                    "vocab_size": head.config.vocab_size,
                }
                | head_metrics(head)
            )


def _settings(history: History, checkpoint: Checkpoint, folder: Path) -> Path:
    """Return a folder with a checkpoint's config.json and tokenizer."""
    if checkpoint.folder:
        return checkpoint.folder
    assert history.repository is not None
    if checkpoint.file("config.json") is None:
        raise WeightsError("has no config.json")
    for name in ("config.json", TOKENIZER):
        if file := checkpoint.file(name):
            history.repository.fetch(checkpoint.commit, file, folder)
    return folder


def head_metrics(head: Head) -> dict[str, float | None]:
    """Return <matrix>/<metric> of an unembedding; None for one that isn't finite."""
    w_VD = jnp.asarray(head.unembedding_VD)
    gain_D = jnp.ones(w_VD.shape[1]) if head.gain_D is None else jnp.asarray(head.gain_D)
    values = jax.device_get(_metrics(w_VD, gain_D, head.config.norm))
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}


@functools.partial(jax.jit, static_argnames="norm")
def _metrics(w_VD: jax.Array, gain_D: jax.Array, norm: str) -> dict[str, jax.Array]:
    folded = "rms_norm" if norm == "rms_norm" else "layer_norm"
    # The gain of a LayerNorm with parameters is in W now, so that its ones direction has no effect any more.
    matrices = (w_VD, gauge_fix(w_VD, norm), gauge_fix(w_VD * gain_D[None, :], folded))
    return {
        f"{kind}/{metric}": value
        for kind, matrix in zip(MATRICES, matrices, strict=True)
        for metric, value in summarize(matrix, METRICS).items()
    }


def with_rates(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with <matrix>_rate/<metric>: the change per natural logarithm of the step since the one before.

    It is missing at a run's first step, at its first step above 0, and for metrics that are.
    """
    if table.empty:
        return table
    columns = [c for c in table.columns if "/" in c]
    keys = [key for key in ("repository", "seed") if key in table]
    table = table.sort_values([*keys, "step"]).reset_index(drop=True)
    log_step = np.log(table["step"].where(table["step"] > 0))
    groups = table.groupby(keys, dropna=False, sort=False)
    elapsed = log_step.groupby(groups.ngroup()).diff()
    rates = {
        column.replace("/", "_rate/"): table[column].astype(float).groupby(groups.ngroup()).diff() / elapsed
        for column in columns
    }
    return pd.concat([table, pd.DataFrame(rates)], axis=1)
