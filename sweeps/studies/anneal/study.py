"""Declare the study: its analysis, and what `run` prints about it at its end."""

from sweeps.studies import Study
from sweeps.studies.anneal.effects import changes, has_ends, sentences

STUDY = Study(name="anneal", analyze=changes, sentences=sentences, in_summary=has_ends)
