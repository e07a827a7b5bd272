"""Measure a suite of public models, join published results, and relate the two: what `olmo-jax atlas` does.

It writes into the working directory: atlas.parquet and atlas.csv, one row per checkpoint; with a published table also
rejected.csv, its rows that found no partner, and correlations.csv, variance.csv and noise.csv.
"""

from pathlib import Path

import pandas as pd
from etils import epath

from olmo_jax.errors import WeightsError
from olmo_jax.files import write_whole
from sweeps.report.joining import read_published
from sweeps.studies.atlas import relations
from sweeps.studies.atlas.join import check_columns, describe, join
from sweeps.studies.atlas.measure import measure
from sweeps.studies.atlas.suites import Suite


def run(suite: Suite, workdir: Path, published: str | None = None) -> list[str]:
    """Carry out the study and return lines on what was found. `published`: a table of results.

    Raises HubError, WeightsError, ConfigError and JoinError.
    """
    results = read_published(published) if published else None
    if results is not None:
        check_columns(suite, results)
    table = measure(suite, workdir)
    if table.empty:
        raise WeightsError(f"{', '.join(suite.sources()[:3])}: no checkpoint could be measured")
    lines = [f"measured {len(table)} checkpoints of {table['repository'].nunique()} repositories"]
    if results is not None:
        joined = join(suite, table, results)
        lines += describe(joined)
        table = joined.table
        _write(workdir, "rejected", joined.rejected)
        found = relations.relate(table, [f"published/{target}" for target in suite.targets])
        for name, rows in found._asdict().items():
            _write(workdir, name, rows)
        lines += relations.lines(found)
    write_whole(epath.Path(workdir / "atlas.parquet"), table.to_parquet(index=False))
    _write(workdir, "atlas", table)
    return [*lines, f"Table: {workdir / 'atlas.csv'}"]


def _write(workdir: Path, name: str, rows: pd.DataFrame) -> None:
    write_whole(epath.Path(workdir / f"{name}.csv"), rows.to_csv(index=False).encode())
