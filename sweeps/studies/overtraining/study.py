"""Declare the study: its analysis, and what `run` prints about it at its end."""

from sweeps.studies import Study
from sweeps.studies.overtraining.effects import by_rate, sentences, tuned

STUDY = Study(
    name="overtraining", analyze=by_rate, sentences=sentences, in_summary=lambda table: not tuned(table).empty
)
