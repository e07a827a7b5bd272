"""Declare the study: what it lays over a published table."""

from sweeps.studies import Study
from sweeps.studies.datadecide.published import join, trains_a_published_size

STUDY = Study(
    name="datadecide",
    analyze=lambda table, curves, courses: None,
    sentences=lambda results: [],
    in_summary=lambda table: False,
    join=join,
    joins=trains_a_published_size,
)
