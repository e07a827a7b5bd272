"""olmo-jax compare"""

import argparse
import os

from sweeps.verbs.verb import DONE, Command, Verb, names


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "workdirs",
        nargs="+",
        type=os.path.expanduser,
        metavar="WORKDIR",
        help="working directories of two or more sweeps that have a report",
    )
    parser.add_argument(
        "--to", type=os.path.expanduser, required=True, metavar="DIR", help="folder for index.html and comparison.csv"
    )
    parser.add_argument(
        "--pair_by",
        type=names,
        default=(),
        metavar="KEYS",
        help="settings by which runs are paired, such as model.d_model,optimizer.weight_decay (default: all that vary)",
    )


def _carry_out(command: Command) -> int:
    from sweeps.report.compare import write_comparison

    arguments = command.arguments
    print("\n".join(write_comparison(arguments.workdirs, arguments.to, arguments.pair_by or None, command.text)))
    return DONE


VERB = Verb(
    "compare",
    "compare two or more sweeps, pairing runs by configuration, in a page and a table",
    "olmo-jax compare runs/mine runs/tied --to=runs/tied-or-not",
    _carry_out,
    _arguments,
)
