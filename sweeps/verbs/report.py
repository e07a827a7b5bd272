"""olmo-jax report"""

import argparse
import os

from sweeps.verbs.stage import plan_of
from sweeps.verbs.verb import DONE, Command, Verb, workdir_of


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--figure",
        metavar="NAME",
        help="redraw only this figure of report/figures, such as loss_against_geometry (an unknown name lists all)",
    )
    parser.add_argument(
        "--join",
        type=os.path.expanduser,
        default="",
        metavar="FILE",
        help="lay this published table, .parquet or .csv, beside the results of a study that takes one (datadecide)",
    )


def _carry_out(command: Command) -> int:
    from olmo_jax.config import require
    from sweeps.planning import record
    from sweeps.report import stage

    workdir = workdir_of(command.arguments)
    figure, join = command.arguments.figure, command.arguments.join
    require(not (figure and join), "--join", join, "makes the whole report; leave out --figure")
    record.join(workdir, plan_of(command))  # raises where the plan doesn't fit the directory
    record.restore_run_files(workdir)
    if figure:
        print("\n".join(map(str, stage.report_figure(workdir, figure))))
    else:
        print(f"Report: {stage.report(workdir, command.text, join)[0]}")
    return DONE


VERB = Verb(
    "report",
    "write results.parquet and report/index.html from the results so far",
    "olmo-jax report --workdir=demo",
    _carry_out,
    _arguments,
    config="taken",
    workdir="needed",
)
