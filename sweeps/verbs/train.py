"""olmo-jax train"""

import argparse

from sweeps.verbs.stage import fetch, plan_of, working
from sweeps.verbs.verb import DONE, STOPPED, Command, Verb, training_arguments, workdir_of


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hosts",
        default="",
        metavar="HOSTS",
        help="train over several processes: auto on a cluster that JAX detects, else HOST:PORT,COUNT,PLACE for each",
    )
    training_arguments(parser)


def _carry_out(command: Command) -> int:
    from olmo_jax.execution import processes
    from sweeps.running import stages

    arguments, workdir = command.arguments, workdir_of(command.arguments)
    if arguments.hosts:
        processes.initialize(arguments.hosts)
    fetch(command)
    plan = plan_of(command)
    with working(command) as stop:
        plan, indexes = stages.begin(workdir, plan)
        trained = stages.train_all(workdir, plan, indexes, stop, arguments.profile)
    if arguments.hosts:
        processes.leave_together()
    return DONE if trained else STOPPED


VERB = Verb(
    "train",
    "prepare and train one run, or a sweep's runs, and stop there",
    "olmo-jax train --config=olmo:4m --workdir=runs/4m",
    _carry_out,
    _arguments,
    config="needed",
    workdir="needed",
)
