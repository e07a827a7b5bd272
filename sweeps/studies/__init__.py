"""One folder per study: its configurations, claims, figures and results.

A folder whose `study.py` holds a `Study` named `STUDY` adds to the report of every sweep; nothing else names it.
"""

import dataclasses
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:  # matplotlib is heavy, and the command line imports this package at each command
    from matplotlib.figure import Figure

    from sweeps.analysis.results import AnalysisResults, StudyAnalysis


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """What a study adds to the report of a sweep.

    For a sweep that it doesn't apply to, its section is "" and it has no sentences.

    Attributes:
      name: the key of its result in `AnalysisResults.studies`.
      analyze: the study's result, from the table, the curves by run id and the fine-tuning curves (`analyze` of
        sweeps.analysis.results describes each).
      section_id, heading: those of its section of the page.
      after: id of the section of the page that it follows.
      section: the section as HTML, everything from the table escaped; "" for none.
      data: what its scripts read, as JSON values, under keys that no other part of the page uses.
      sentences: its result in words, one sentence or more per item; they come first among the findings.
      in_summary: whether `run` prints these sentences at its end for a sweep with this table; called before the curves
        are read.
      figures: functions that draw one figure each from the results of the sweep, by name.
      scripts: JavaScript files that draw the section's figures from the page's data.
    """

    name: str
    analyze: "StudyAnalysis"
    section_id: str
    heading: str
    after: str
    section: "Callable[[AnalysisResults], str]"
    data: "Callable[[AnalysisResults], Mapping[str, Any]]"
    sentences: Callable[[Any], Sequence[str]]
    in_summary: Callable[[pd.DataFrame], bool]
    figures: "Mapping[str, Callable[[AnalysisResults], Figure]]" = dataclasses.field(default_factory=dict)
    scripts: Sequence[Traversable] = ()


def registered_studies() -> list[Study]:
    """Return the study of each subfolder that declares one, in the order of the folders' names."""
    folders = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)
    return [study for folder in folders if (study := _declared(f"{__name__}.{folder}")) is not None]


def _declared(package: str) -> Study | None:
    if importlib.util.find_spec(f"{package}.study") is None:
        return None
    return importlib.import_module(f"{package}.study").STUDY
