"""olmo-jax new"""

import argparse
import os

from sweeps.verbs.verb import DONE, Command, Verb


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=os.path.expanduser, metavar="FOLDER", help="a new or empty folder")


def _carry_out(command: Command) -> int:
    from sweeps.starting.new_project import write_project

    print("\n".join(write_project(command.arguments.folder)))
    return DONE


VERB = Verb(
    "new",
    "write a project of your own: a sweep, a metric, and what to run next",
    "olmo-jax new my-study",
    _carry_out,
    _arguments,
)
