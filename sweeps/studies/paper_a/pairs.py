"""Claims about an option of the model: two models that differ only in it, paired by seed."""

from typing import NamedTuple

import pandas as pd

from sweeps import analysis
from sweeps.studies.paper_a.contrasts import BATCH, TOKENS
from sweeps.studies.paper_a.effect import FIXED_RANK, LEAST, LOSS, RANK, Effect, mean_difference, untestable
from sweeps.table.columns import SATURATION


class _Claim(NamedTuple):
    """`sign`: that of the option's value minus the other's in the paper. `option`, `other`: names of the models."""

    text: str
    metric: str
    sign: int
    option: str
    other: str


_PARALLEL, _SEQUENTIAL = "pythia-14m", "pythia-14m-sequential"
_CLAIMS = (
    _Claim("tied embeddings raise R(W)", RANK, +1, "4m-tied", "4m"),
    _Claim("the same for the gauge-fixed W", FIXED_RANK, +1, "4m-tied", "4m"),
    _Claim("tied embeddings give a worse loss", LOSS, +1, "4m-tied", "4m"),
    _Claim("the rank of Pythia-14M collapses, that of its sequential twin doesn't", RANK, -1, _PARALLEL, _SEQUENTIAL),
    _Claim("Pythia-14M saturates late, its sequential twin doesn't", SATURATION, +1, _PARALLEL, _SEQUENTIAL),
)


def effects(rows: pd.DataFrame) -> list[Effect]:
    """Return the test of each claim about an option on the final rows of a sweep, those of the pairs included."""
    settings = [BATCH, TOKENS, *(c for c in rows.columns if c.startswith("config.optimizer."))]
    return [_effect(claim, rows, settings) for claim in _CLAIMS]


def _effect(claim: _Claim, rows: pd.DataFrame, settings: list[str]) -> Effect:
    if claim.metric not in rows:
        return untestable(claim.text, claim.metric, of="pairs")
    keys = [*settings, "config.init_seed", "config.data_seed"]
    values = rows[["config.name", *keys, claim.metric]].dropna(subset=[claim.metric])
    option, other = (values[values["config.name"] == name] for name in (claim.option, claim.other))
    pairs = option.merge(other, on=keys, suffixes=("", "_other"))
    differences = (pairs[claim.metric] - pairs[f"{claim.metric}_other"]).astype(float).tolist()
    if len(differences) < LEAST:
        return untestable(claim.text, claim.metric, of="pairs")
    noise = analysis.seed_deviation(rows, claim.metric)
    return mean_difference(claim.text, claim.metric, claim.sign, differences, noise, "pairs")
