"""olmo-jax demo"""

import argparse

from sweeps.verbs import run
from sweeps.verbs.verb import Command, Verb

_SIZES = ("full", "smoke")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size", choices=_SIZES, default="full", help="full, the default: 5 minutes on 2 cores; smoke: 1 or 2"
    )
    parser.set_defaults(mirror="")


def _carry_out(command: Command) -> int:
    arguments = command.arguments
    arguments.workdir = arguments.workdir or "demo"
    name = "demo" if arguments.size == "full" else f"demo:{arguments.size}"
    return run.run(command._replace(overrides=[f"--config={name}"]))


VERB = Verb(
    "demo",
    "train and evaluate 12 small models and write a report, into the folder demo",
    "olmo-jax demo --size=smoke --workdir=/tmp/demo",
    _carry_out,
    _arguments,
    workdir="taken",
)
