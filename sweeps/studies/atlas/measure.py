"""Measure the unembeddings of a suite's models, reading only these: one row per checkpoint."""

import functools
import math
import tempfile
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
from olmo_jax.model import parameter_count
from sweeps.histories.choice import Revisions
from sweeps.histories.history import Checkpoint, lazy_tensors, open_history
from sweeps.histories.small_files import SmallFiles
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
    file = epath.Path(workdir / MEASURED)
    stored = read_json(file, "remove it, to measure again") if file.exists() else {}
    known: dict[str, dict[str, Any]] = stored.get("rows", {}) if stored.get("metrics") == list(METRICS) else {}
    sources = suite.sources()
    rows: list[dict[str, Any]] = []
    with progress("atlas", len(sources)) as show:
        for i, source in enumerate(sources):
            history = open_history(source, Revisions(suite.revisions))
            said = suite.said(source)
            with tempfile.TemporaryDirectory() as scratch:
                files = SmallFiles(history.repository, history.checkpoints, Path(scratch))
                for checkpoint in history.checkpoints:
                    key = f"{source} at {checkpoint.name}"
                    if key not in known and (values := _measured(files, checkpoint, key)):
                        known[key] = values
                        write_json(file, {"metrics": list(METRICS), "rows": known})
                    if key in known:
                        rows.append(_about(source, checkpoint) | said | _seed(checkpoint) | known[key])
            _check_vocabulary(rows)
            show(i + 1, source)
    return with_rates(pd.DataFrame(rows))


def _about(source: str, checkpoint: Checkpoint) -> dict[str, Any]:
    said = checkpoint.said
    about = {"repository": source, "revision": checkpoint.name, "step": checkpoint.step, "tokens": said.tokens}
    return about | ({"stage": said.stage} if said.stage else {})


def _seed(checkpoint: Checkpoint) -> dict[str, str]:
    return {} if checkpoint.said.seed is None else {"seed": checkpoint.said.seed}


def _check_vocabulary(rows: list[dict[str, Any]]) -> None:
    """Raise ConfigError for models of different vocabularies."""
    vocabularies = {row["vocab_size"]: row["repository"] for row in reversed(rows)}
    if len(vocabularies) > 1:
        (size, one), (other_size, other) = list(vocabularies.items())[:2]
        raise ConfigError(
            f"{one}: has a vocabulary of {size}, and {other} one of {other_size}, so their unembeddings can't be "
            "compared; measure them as two suites"
        )


def _measured(files: SmallFiles, checkpoint: Checkpoint, name: str) -> dict[str, Any] | None:
    """Return what is measured of a checkpoint; None, and a line on stderr, for one that can't be read."""
    try:
        # The tokenizer tells which rows are padding.
        tokenizer = files.tokenizer()
        head = read_head(
            epath.Path(files.config_folder(checkpoint)),
            lazy_tensors(checkpoint),
            epath.Path(tokenizer) if tokenizer else None,
        )
    except (WeightsError, ConfigError) as error:
        say(f"{name}: {error}; it is left out")
        return None
    total, _ = parameter_count(head.config)
    shape = {"parameters": total, "d_model": head.config.d_model, "vocab_size": head.config.vocab_size}
    return shape | head_metrics(head)


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
    keys = [key for key in ("repository", "stage", "seed") if key in table]
    table = table.sort_values([*keys, "step"]).reset_index(drop=True)
    log_step = np.log(table["step"].where(table["step"] > 0))
    groups = table.groupby(keys, dropna=False, sort=False)
    elapsed = log_step.groupby(groups.ngroup()).diff()
    rates = {
        column.replace("/", "_rate/"): table[column].astype(float).groupby(groups.ngroup()).diff() / elapsed
        for column in columns
    }
    return pd.concat([table, pd.DataFrame(rates)], axis=1)
