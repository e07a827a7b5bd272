"""Declare what this study adds to the report of a sweep."""

import importlib.resources

import pandas as pd

from sweeps.studies import Study
from sweeps.studies.paper_b.claims import NAME, claims
from sweeps.studies.paper_b.figures import claim_curves, claim_leads, claim_sensitivity, claim_shift
from sweeps.studies.paper_b.section import HEADING, SECTION_ID, claims_data, claims_section
from sweeps.table.columns import TEXTS


def _measures_texts(table: pd.DataFrame) -> bool:
    return any(str(column).startswith(TEXTS) for column in table)


STUDY = Study(
    name=NAME,
    analyze=claims,
    section_id=SECTION_ID,
    heading=HEADING,
    after="training",
    section=claims_section,
    data=claims_data,
    sentences=lambda tested: [claim.text for claim in tested],
    in_summary=_measures_texts,
    figures={
        "claim_curves": claim_curves,
        "claim_shift": claim_shift,
        "claim_leads": claim_leads,
        "claim_sensitivity": claim_sensitivity,
    },
    scripts=(importlib.resources.files("sweeps.studies.paper_b") / "claims.js",),
)
