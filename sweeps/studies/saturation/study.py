"""Declare the study: its analysis, and what `run` prints about it at its end."""

from sweeps.studies import Study
from sweeps.studies.saturation.effects import applies, hazards, sentences

STUDY = Study(name="saturation", analyze=hazards, sentences=sentences, in_summary=applies)
