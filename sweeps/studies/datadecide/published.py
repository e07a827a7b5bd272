"""Lay published perplexities over those of a sweep: which rows of a published table are of its sizes and seeds."""

import numpy as np
import pandas as pd

from olmo_jax.console import say
from sweeps.report.joining import JoinError
from sweeps.studies.datadecide.recipe import SEEDS, SIZES, batch_size
from sweeps.table.columns import PRIMARY_PAIR

# Names of the Pile's perplexity, in the published table and in those made from it.
PERPLEXITIES = ("eval/pile-validation/Perplexity", "pile-valppl", "pile_valppl")
_KEYS = ("params", "data", "seed", "step")
_LOSS = PRIMARY_PAIR[1]


def trains_a_published_size(table: pd.DataFrame) -> bool:
    """Return whether a sweep's table has runs of the recipe, by their names, seeds and batches."""
    return bool(_ours(table).any())


def join(published: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Return the curves of a sweep and the published ones of the same sizes and seeds.

    Args:
      published: one row per size (`params`), corpus (`data`), `seed` and `step`, with a perplexity of the Pile.
      table: the sweep's, one row per (run, checkpoint).

    Returns:
      One row per point: size, seed, step, perplexity, and corpus, "this sweep" for the sweep's. The sweep's perplexity
      is that of the text that it validates on.

    Raises JoinError for a published table without these columns, with duplicate rows, or without rows of a size and
    seed of the sweep, and for a sweep without losses. Other rows are dropped, with a message.
    """
    value = next((name for name in PERPLEXITIES if name in published), None)
    missing = [name for name in _KEYS if name not in published] + ([PERPLEXITIES[0]] if value is None else [])
    if missing:
        raise JoinError(f"--join: the table has no column {', '.join(missing)}; it has {', '.join(published)[:300]}")
    rows = published[[*_KEYS, value]].rename(columns={"params": "size", "data": "corpus", value: "perplexity"})
    rows = rows.dropna().reset_index(drop=True)
    rows = rows.assign(size=rows["size"].astype(str).str.lower(), seed=rows["seed"].map(_seed_name))
    ours = _curves(table)
    if ours.empty:
        raise JoinError("--join: the sweep has no losses to compare; run `olmo-jax evaluate` first")
    pairs = rows.merge(ours[["size", "seed"]].drop_duplicates())
    if pairs.empty:
        theirs, wanted = ("; ".join(_named(of)) for of in (rows, ours))
        raise JoinError(
            f"--join: the table has no row of a size and seed of the sweep; its sizes and seeds are {theirs}, and the "
            f"sweep's {wanted}"
        )
    if len(pairs) < len(rows):
        say(f"--join: {len(rows) - len(pairs):,} of {len(rows):,} rows are of other sizes or seeds and are left out")
    duplicates = pairs[pairs.duplicated(["size", "corpus", "seed", "step"])]
    if len(duplicates):
        first = duplicates.iloc[0]
        raise JoinError(
            f"--join: {len(duplicates)} duplicate rows, the first of them {first['size']}, {first['corpus']}, "
            f"{first['seed']}, step {first['step']}; remove the duplicates"
        )
    return pd.concat([ours, pairs], ignore_index=True)


def _named(rows: pd.DataFrame) -> list[str]:
    """Return each size with its seeds, in words."""
    return [f"{size} with {', '.join(sorted(seeds.unique()))}" for size, seeds in rows.groupby("size")["seed"]]


def _ours(table: pd.DataFrame) -> pd.Series:
    """Return which rows are of the recipe; a run with another batch size isn't, since its steps differ."""
    columns = ("config.name", "config.init_seed", "config.data.batch_size")
    if not set(columns) <= set(table.columns):  # imported runs have no seeds
        return pd.Series(False, index=table.index)
    batches = table["config.name"].map({size: batch_size(size) for size in SIZES})
    return table["config.init_seed"].isin(list(SEEDS.values())) & (batches == table["config.data.batch_size"])


def _curves(table: pd.DataFrame) -> pd.DataFrame:
    rows = table[_ours(table)]
    losses = rows[_LOSS].astype(float) if _LOSS in rows else np.nan
    return pd.DataFrame(
        {
            "size": rows["config.name"],
            "corpus": "this sweep",
            "seed": rows["config.init_seed"].map(_seed_name),
            "step": rows["step"],
            "perplexity": np.exp(losses),
        }
    ).dropna()


def _seed_name(seed: object) -> str:
    """Return a seed as the published table names it: by name, with spaces, or by number."""
    numbers = {str(number): name for name, number in SEEDS.items()}
    text = str(int(seed)) if isinstance(seed, float) and seed.is_integer() else str(seed).replace("-", " ")
    return numbers.get(text, text)
