"""The last stage of a sweep: its table, its statistics and its report, from what the working directory holds."""

import time
from typing import Any

import pandas as pd
from etils import epath

from eval import evaluate as evaluation
from eval.results import damaged
from olmo_jax.config import require
from olmo_jax.console import say
from olmo_jax.errors import UserError
from olmo_jax.files import DamagedFileError, read_json, write_json
from olmo_jax.logs.metrics import METRICS, TIMINGS, read_timings
from olmo_jax.storage.run_files import known_runs
from sweeps.analysis import final_rows
from sweeps.analysis.results import AnalysisResults, analyze
from sweeps.planning.record import read_record, recorded_plan
from sweeps.planning.versions import code_version
from sweeps.report import FIGURES, TABLES, write_all
from sweeps.report.export import DrawingError, figure_item, write_figures
from sweeps.report.item import items, own_files, show
from sweeps.report.joining import join_published
from sweeps.report.row_sentences import after_training, against_unigram, caveat, primary, strongest_setting
from sweeps.running import stage_times
from sweeps.studies import registered_studies
from sweeps.table.columns import PRIMARY_PAIR, AnalysisError
from sweeps.table.curves import read_finetuning_curves
from sweeps.table.table import build_table, is_written, read_curves, write_table

_SHOWN = "made_from.json"


class ItemError(UserError):
    """A user's own items failed; the report is written without them."""


def report(workdir: epath.Path, command: str, published: str = "") -> tuple[epath.Path, pd.DataFrame]:
    """Write report/ and results.csv, .schema.json and .parquet, unless they are up to date.

    They are up to date if the results in the directory, this code and the user's files with items haven't changed
    since, and no published table is joined.

    Args:
      published: file of a table that the sweep's study lays beside its results; "" for none.

    Returns the page's path and the table. Raises ItemError, after all is written, if a user's item failed; UserError,
    before anything is written, for a published table that can't be read or doesn't fit.
    """
    started, record = time.monotonic(), read_record(workdir)
    table = _table(workdir)
    joined = join_published(published, table) if published else {}
    folder = workdir / "report"
    page = folder / "index.html"
    whole = page.exists() and (folder / FIGURES).exists() and (folder / TABLES).exists()
    shown = _shown_beside_the_table(workdir)
    if whole and not joined and is_written(workdir, table) and _read(folder / _SHOWN) == shown:
        return page, table
    results = _analyzed(workdir, table)._replace(joined=joined)
    facts = {
        "command": command,
        "written": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "data": ", ".join(f"{name} {print_}" for name, print_ in record["fingerprints"].items()),
        **_training_seconds(workdir),
        "seconds of statistics": f"{time.monotonic() - started:.0f}",
    }
    later = {f"{name}, later": version for made in record["later_versions"] for name, version in made.items()}
    contents = [show(item, results) for item in items()]
    failed = [f"{one.item.name}: {one.error}" for one in contents if one.error]
    try:
        write_all(folder, results, facts | record["versions"] | later, shown=contents)
    except DrawingError as error:
        failed.append(str(error))
    write_json(folder / _SHOWN, {} if failed or joined else shown)
    write_table(workdir, table)  # last: it tells the next call that the page is of this table
    stage_times.add(workdir, "report", time.monotonic() - started)
    if failed:
        raise ItemError(f"the report {page} is written without the items that failed: {'; '.join(failed)}")
    return page, table


def report_figure(workdir: epath.Path, name: str) -> list[epath.Path]:
    """Redraw one figure of the report and return its paths.

    Raises AnalysisError for an unknown name, or for a figure that has nothing to show.
    """
    item = figure_item(name)
    shown = show(item, _analyzed(workdir, _table(workdir)))
    if shown.content is None:
        raise AnalysisError(f"figure '{name}': {shown.error or f'nothing to show ({shown.why})'}")
    return write_figures(workdir / "report" / FIGURES, [shown])


def _shown_beside_the_table(workdir: epath.Path) -> dict[str, Any]:
    """Return what else the page depends on: the length of each run's metrics, and the version of the code."""
    runs = {run: workdir / "runs" / run / METRICS for run in known_runs(workdir)}
    sizes = {run: path.stat().length for run, path in runs.items() if path.exists()}
    return {"olmo-jax": code_version(), "bytes_of_metrics": sizes, "items": own_files()}


def _read(path: epath.Path) -> Any:
    try:
        return read_json(path, "the report is made again")
    except (FileNotFoundError, DamagedFileError):
        return None


def _analyzed(workdir: epath.Path, table: pd.DataFrame) -> AnalysisResults:
    courses = read_finetuning_curves(workdir, recorded_plan(workdir).evaluation)
    studies = {study.name: study.analyze for study in registered_studies()}
    return analyze(table, read_curves(workdir), courses, studies)


def _table(workdir: epath.Path) -> pd.DataFrame:
    have_runs, asked = (workdir / "runs").exists(), recorded_plan(workdir).evaluation
    table = build_table(workdir, asked) if have_runs else pd.DataFrame()
    if have_runs and (names := evaluation.outdated(workdir, known_runs(workdir), asked)):
        say(f"report: results with other settings than the last evaluation's are left out: {', '.join(names)}; "
            "`olmo-jax evaluate` makes them again")  # fmt: skip
    if have_runs and (names := sorted({n for run in known_runs(workdir) for n in damaged(workdir, run)})):
        say(f"report: damaged results are left out: {', '.join(names)}; `olmo-jax evaluate` makes them again")
    require(not table.empty, "--workdir", str(workdir), "holds no checkpoint to report on; train first")
    return table


def summary(workdir: epath.Path, table: pd.DataFrame) -> list[str]:
    """Return the sentences that `run` prints at its end: the studies' results, the findings and what they rest on."""
    final = final_rows(table)
    of_studies: list[str] = []
    if studies := [study for study in registered_studies() if study.in_summary(table)]:
        curves, courses = read_curves(workdir), read_finetuning_curves(workdir, recorded_plan(workdir).evaluation)
        of_studies = [s for study in studies for s in study.sentences(study.analyze(table, curves, courses))]
    found = [of(final.rows) for of in (primary, strongest_setting, after_training)] + [against_unigram(table)]
    # Models of equations have no loss by domain, and these sentences would only say so.
    usual = found if not of_studies or PRIMARY_PAIR[1] in table else []
    return [*of_studies, *usual, caveat(final)]


def _training_seconds(workdir: epath.Path) -> dict[str, str]:
    """Return the time of compiling, steps, probes and checkpoints over all starts; runs of a stack share it."""
    longest = [max(stack.runs, key=lambda run: run.config.total_steps).id for stack in recorded_plan(workdir).stacks]
    rows = [row for run in longest for row in read_timings(workdir / "runs" / run / TIMINGS)]
    total = sum(row["seconds"] for row in rows)
    probes = sum(row["seconds"] for row in rows if row["event"] == "probe")
    share = f"{probes / total:.0%}" if total else "none"
    return {"seconds of training": f"{total:.0f}", "probes' share of training": share}
