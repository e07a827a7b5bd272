"""olmo-jax status"""

import argparse

from sweeps.verbs.stage import plan_of
from sweeps.verbs.verb import DONE, Command, Verb, workdir_of


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--watch", action="store_true", help="repeat every few seconds until everything is done")


def _carry_out(command: Command) -> int:
    from sweeps.planning import record
    from sweeps.running.status import show

    workdir = workdir_of(command.arguments)
    plan = record.join(workdir, plan_of(command))
    record.restore_run_files(workdir)
    show(workdir, record.with_stacks(workdir, plan), command.arguments.watch)
    return DONE


VERB = Verb(
    "status",
    "show the progress of the runs in a working directory",
    "olmo-jax status --workdir=demo --watch",
    _carry_out,
    _arguments,
    config="taken",
    workdir="needed",
)
