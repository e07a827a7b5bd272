"""Lay published perplexities over those of a sweep: which rows of a published table are of its sizes and seeds."""

import numpy as np
import pandas as pd

from olmo_jax.console import say
from sweeps.report.joining import JoinError
from sweeps.studies.datadecide.recipe import SEEDS, SIZES
from sweeps.table.columns import PRIMARY_PAIR

# Names of the Pile's perplexity, in the published table and in those made from it.
PERPLEXITIES = ("eval/pile-validation/Perplexity", "pile-valppl", "pile_valppl")
_KEYS = ("params", "data", "seed", "step")
_LOSS = PRIMARY_PAIR[1]


def trains_a_published_size(table: pd.DataFrame) -> bool:
    """Return whether a sweep's table has runs of the recipe, by their names and seeds."""
    return bool(_ours(table).any()) if len(table) else False


def join(published: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Return the curves of a sweep and the published ones of the same sizes and seeds.

    Args:
      published: one row per size (`params`), corpus (`data`), `seed` and `step`, with a perplexity of the Pile.
      table: the sweep's, one row per (run, checkpoint).

    Returns:
      One row per point: size, seed, step, perplexity, and corpus, "this sweep" for the sweep's. The sweep's perplexity
      is that of the text that it validates on.

    Raises JoinError for a table without these columns, with rows twice, or without any row of the sizes, or of the
    seeds, of the sweep. Rows of others are left out, and said to be.
    """
    value = next((name for name in PERPLEXITIES if name in published), None)
    missing = [name for name in _KEYS if name not in published] + ([PERPLEXITIES[0]] if value is None else [])
    if missing:
        raise JoinError(f"--join: the table has no column {', '.join(missing)}; it has {', '.join(published)[:300]}")
    rows = published[[*_KEYS, value]].rename(columns={"params": "size", "data": "corpus", value: "perplexity"})
    rows = rows.dropna().assign(size=rows["size"].astype(str).str.lower(), seed=rows["seed"].map(_seed_name))
    ours = _curves(table)
    for key in ("size", "seed"):
        theirs, wanted = sorted(rows[key].unique()), sorted(ours[key].unique())
        if not set(theirs) & set(wanted):
            raise JoinError(
                f"--join: the table's {key}s are {', '.join(theirs)}, and the sweep's {', '.join(wanted)}: none is the "
                "same, so there is nothing to compare"
            )
    pairs = rows.merge(ours[["size", "seed"]].drop_duplicates())
    if len(pairs) < len(rows):
        say(f"--join: {len(rows) - len(pairs):,} of {len(rows):,} rows are of other sizes or seeds and left out")
    twice = pairs[pairs.duplicated(["size", "corpus", "seed", "step"])]
    if len(twice):
        first = twice.iloc[0]
        raise JoinError(
            f"--join: {len(twice)} rows are there twice, the first of them {first['size']}, {first['corpus']}, "
            f"{first['seed']}, step {first['step']}; remove those that don't belong"
        )
    return pd.concat([ours, pairs], ignore_index=True)


def _ours(table: pd.DataFrame) -> pd.Series:
    return table["config.name"].isin(SIZES) & table["config.init_seed"].isin(list(SEEDS.values()))


def _curves(table: pd.DataFrame) -> pd.DataFrame:
    rows = table[_ours(table)]
    return pd.DataFrame(
        {
            "size": rows["config.name"],
            "corpus": "this sweep",
            "seed": rows["config.init_seed"].map(_seed_name),
            "step": rows["step"],
            "perplexity": np.exp(rows[_LOSS].astype(float)),
        }
    ).dropna()


def _seed_name(seed: object) -> str:
    """Return a seed as the published table names it: by name, with spaces, or by number."""
    numbers = {str(number): name for name, number in SEEDS.items()}
    text = str(seed).replace("-", " ")
    return numbers.get(text, text)
