"""olmo-jax serve"""

import argparse

from sweeps.verbs.stage import plan_of
from sweeps.verbs.verb import DONE, Command, Verb, workdir_of


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="default: 8000; 0: any that is free")


def _carry_out(command: Command) -> int:
    from sweeps.planning import record
    from sweeps.report.serve import serve

    workdir = workdir_of(command.arguments)
    plan = record.with_stacks(workdir, record.join(workdir, plan_of(command)))
    serve(workdir, plan, command.arguments.port)
    return DONE


VERB = Verb(
    "serve",
    "show a sweep in a browser while it trains: curves, status, time left; on this machine only",
    "olmo-jax serve --workdir=demo",
    _carry_out,
    _arguments,
    config="taken",
    workdir="needed",
)
