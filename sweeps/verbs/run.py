"""olmo-jax run"""

import argparse

from sweeps.verbs.stage import fetch, plan_of, working
from sweeps.verbs.verb import DONE, STOPPED, Command, Verb, training_arguments, workdir_of


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cohort", metavar="K", help="only this cohort: its index in the plan, from 0, or its id")
    training_arguments(parser)


def _carry_out(command: Command) -> int:
    fetch(command)
    return run(command, command.arguments.profile, command.arguments.cohort)


def run(command: Command, profile: tuple[int, ...] = (), cohort: str | None = None) -> int:
    """Prepare, train, evaluate and report the sweep of a command; return the exit code."""
    from sweeps.running import stages

    plan = plan_of(command)
    with working(command) as stop:
        completed = stages.run(workdir_of(command.arguments), plan, stop, command.text, profile, cohort)
    return DONE if completed else STOPPED


VERB = Verb(
    "run",
    "prepare, train, evaluate and report a sweep; run it again to resume",
    "olmo-jax run --config='own_text:texts/*.txt' --workdir=runs/mine",
    _carry_out,
    _arguments,
    config="needed",
    workdir="needed",
)
