"""Declare the study: its analysis, and what `run` prints about it at its end."""

import pandas as pd

from sweeps.studies import Study
from sweeps.studies.paper_b.claims import NAME, claims
from sweeps.table.columns import TEXTS


def measures_texts(table: pd.DataFrame) -> bool:
    return any(str(column).startswith(TEXTS) for column in table)


STUDY = Study(
    name=NAME,
    analyze=claims,
    sentences=lambda tested: [claim.text for claim in tested],
    in_summary=measures_texts,
)
