"""Declare the study: its analysis, and what `run` prints about it at its end."""

from sweeps.studies import Study
from sweeps.studies.do_rank.effects import effects, has_interventions, sentences

STUDY = Study(name="do_rank", analyze=effects, sentences=sentences, in_summary=has_interventions)
