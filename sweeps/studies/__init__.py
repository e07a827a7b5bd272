"""One folder per study: its configurations, claims, figures and results.

A folder is a study if its `study.py` holds a `Study` named `STUDY`. Its `items.py`, if there is one, registers sections
and items of the report (sweeps.report.item); it is imported when these are listed. Nothing else names a study.
"""

import dataclasses
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from sweeps.analysis.results import StudyAnalysis


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """What a study adds to the results of every sweep.

    Attributes:
      name: the key of its result in `AnalysisResults.studies`.
      analyze: the study's result, from the table, the curves by run id and the fine-tuning curves (`analyze` of
        sweeps.analysis.results describes each).
      sentences: its result in words, one sentence or more per item; none for a sweep that it doesn't apply to.
      in_summary: whether `run` prints these sentences at its end for a sweep with this table; called before the curves
        are read.
      joins: whether the study lays a published table beside a sweep with this table (`olmo-jax report --join`).
      join: from the published table and the sweep's, what the study's items show of both; raises UserError for a table
        that doesn't fit.
    """

    name: str
    analyze: "StudyAnalysis"
    sentences: Callable[[Any], Sequence[str]]
    in_summary: Callable[[pd.DataFrame], bool]
    joins: Callable[[pd.DataFrame], bool] = lambda table: False
    join: Callable[[pd.DataFrame, pd.DataFrame], pd.DataFrame] | None = None


def registered_studies() -> list[Study]:
    """Return the study of each subfolder that declares one, in the order of the folders' names."""
    return [module.STUDY for module in _modules("study")]


def load_items() -> None:
    """Import the modules that register the studies' items of the report."""
    _modules("items")


def _modules(name: str) -> list[ModuleType]:
    """Return this module of each folder that has one."""
    folders = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)
    names = [f"{__name__}.{folder}.{name}" for folder in folders]
    return [importlib.import_module(module) for module in names if importlib.util.find_spec(module) is not None]
