"""A metric's card: the findings of the five tests, from a sweep's table and the matrices of its runs."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pandas as pd

from sweeps.analysis.doses import CONTROL, arms_of
from sweeps.analysis.encode import finite_numbers
from sweeps.judge import cause, gain, gauge, noise, null
from sweeps.judge.finding import PASS, Finding
from sweeps.judge.matrices import Matrix, shapes, source_of
from sweeps.table.columns import final_rows


@dataclasses.dataclass(frozen=True)
class Card:
    """A metric and what the tests found.

    Attributes:
      metric: its column. runs, configurations: those with a finite value. findings: in the order of the tests.
    """

    metric: str
    runs: int
    configurations: int
    findings: tuple[Finding, ...]

    @property
    def passes(self) -> int:
        return sum(finding.verdict == PASS for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"findings": [finding.as_json() for finding in self.findings]}


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
    """What metrics are judged by.

    Attributes:
      rows: the last row of each finished run without intervention. matrices: unembeddings and states of some of these
        runs, which have one shape and norm. interventions: the table of a sweep that has some, or None.
      outcomes: columns of `rows` that the test of gain predicts.
    """

    rows: pd.DataFrame
    matrices: Sequence[Matrix]
    interventions: pd.DataFrame | None = None
    outcomes: tuple[str, ...] = ()

    @property
    def alike(self) -> pd.Series:
        """Return which rows are of runs with the matrices' shape; all without matrices."""
        labels = shapes(self.rows)
        first = labels[self.rows["run_id"].isin([matrix.run_id for matrix in self.matrices])]
        return labels.isin(first) if len(first) else pd.Series(True, self.rows.index)

    @classmethod
    def of(
        cls, table: pd.DataFrame, matrices: Sequence[Matrix], interventions: pd.DataFrame | None = None
    ) -> "Evidence":
        """Return the evidence of a table; its own interventions are used if no other table is given."""
        if interventions is None and has_interventions(table):
            interventions = table
        rows = observational(table)
        return cls(rows, matrices, interventions, gain.outcomes_of(rows))


def observational(table: pd.DataFrame) -> pd.DataFrame:
    """Return the last row of each finished run without intervention."""
    rows = final_rows(table).rows
    return rows[(arms_of(rows)["arm"] == CONTROL).to_numpy()].reset_index(drop=True) if len(rows) else rows


def has_interventions(table: pd.DataFrame) -> bool:
    """Return whether a finished run has an intervention."""
    return len(observational(table)) < len(final_rows(table).rows)


def judge(columns: Sequence[str], evidence: Evidence) -> list[Card]:
    """Return a card for each metric.

    Raises:
      UnknownColumnError, AnalysisError: a column that isn't there or isn't of numbers.
    """
    rows = evidence.rows
    values = finite_numbers(rows, columns)
    spreads = {column: float(values[column][evidence.alike].std()) for column in columns}
    gauges: dict[str, Finding] = {}
    nulls: dict[str, Finding] = {}
    for source in dict.fromkeys(map(source_of, columns)):
        of_source = [column for column in columns if source_of(column) == source]
        matrices = [matrix for matrix in evidence.matrices if matrix.source == source]
        gauges |= gauge.findings(of_source, matrices, spreads)
        nulls |= null.findings(of_source, matrices)
    gains = gain.gains(columns, rows, evidence.outcomes)
    return [
        Card(
            column,
            int(values[column].notna().sum()),
            int(rows["configuration"][values[column].notna()].nunique()),
            (
                gauges[column],
                nulls[column],
                noise.finding(column, rows),
                gain.finding(column, gains),
                cause.finding(column, evidence.interventions),
            ),
        )
        for column in columns
    ]
