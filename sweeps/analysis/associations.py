"""Every geometry metric against every loss, one row an association."""

import pandas as pd

from sweeps.analysis.columns import PRIMARY_PAIR, controls_of, final_rows, geometry_columns, loss_columns
from sweeps.analysis.correlation import Form, many
from sweeps.analysis.estimate import Estimate, nothing


def correlations(table: pd.DataFrame, groups: str | None = "configuration") -> pd.DataFrame:
    """Every geometry metric against every loss: raw, and given the settings that vary, as ranks and as factors.

    Final rows of runs that didn't diverge; `left_out` says in each row how many runs that excludes. p-values are not
    corrected for the number of pairs: only PRIMARY_PAIR, which comes first, was declared beforehand.

    Returns:
      One row a (metric, target, form): metric, target, form ("raw", "partial rank" or "partial factor"), estimate, low,
      high, p_value, n, left_out, note; the note says why a value is missing.
    """
    final = final_rows(table)
    controls = tuple(controls_of(final.rows))
    by_form: dict[str, tuple[tuple[str, ...], Form]] = {
        "raw": ((), "rank"),
        "partial rank": (controls, "rank"),
        "partial factor": (controls, "factor"),
    }
    metrics, targets = geometry_columns(table), loss_columns(table)
    pairs = [(metric, target) for target in targets for metric in metrics]
    order = {pair: i for i, pair in enumerate(sorted(pairs, key=lambda pair: pair != PRIMARY_PAIR))}
    rows = []
    for position, (name, (used, form)) in enumerate(by_form.items()):
        for (metric, target), (estimate, note) in many(final.rows, metrics, targets, used, form, groups).items():
            if name != "raw" and not controls:
                estimate = nothing(estimate.n)
                note = "no setting varies, so there is nothing to control for"
            left_out = final.diverged + final.unfinished
            row = {"metric": metric, "target": target, "form": name, **estimate._asdict()}
            row |= {"left_out": left_out, "note": note}
            rows.append((order[metric, target], position, row))
    columns = ["metric", "target", "form", *Estimate._fields, "left_out", "note"]
    return pd.DataFrame([row for _, _, row in sorted(rows, key=lambda r: r[:2])], columns=columns)
