"""What a finished sweep has to show for a claim."""

import functools
from collections.abc import Callable

import pandas as pd
from etils import epath

from sweeps.planning.record import recorded_plan
from sweeps.studies.paper_b.claim import Claim
from sweeps.studies.paper_b.claims import claims
from sweeps.table.curves import read_finetuning_curves
from sweeps.table.table import read_curves, read_table


class Sweep:
    """The table of a finished sweep; the curves of its runs and of their fine-tunings are read when first needed.

    Args:
      table: one row per (run, checkpoint). curves: function that returns the metrics over training, by run id.
      courses: function that returns the fine-tuning curves; see sweeps.table.curves.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        curves: Callable[[], dict[str, pd.DataFrame]] = dict,
        courses: Callable[[], pd.DataFrame] = pd.DataFrame,
    ):
        self.table = table
        self._curves, self._courses = curves, courses

    @functools.cached_property
    def curves(self) -> dict[str, pd.DataFrame]:
        return self._curves()

    @functools.cached_property
    def courses(self) -> pd.DataFrame:
        return self._courses()

    @functools.cached_property
    def dimension_results(self) -> list[Claim]:
        """The results of the experiments on local dimension that the sweep holds; several claims ask for them."""
        return claims(self.table, self.curves, self.courses)


def read_finished(workdir: epath.Path) -> Sweep:
    """Return the sweep in a working directory. Raises AnalysisError without a table that can be read."""
    return Sweep(
        read_table(workdir),
        lambda: read_curves(workdir),
        lambda: read_finetuning_curves(workdir, recorded_plan(workdir).evaluation),
    )
