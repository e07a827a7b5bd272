"""olmo-jax config"""

import argparse

from sweeps.verbs.verb import DONE, Command, Verb


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "part",
        nargs="?",
        default="",
        metavar="PART",
        help="a section or a setting, such as train.optimizer or weight_decay",
    )


def _carry_out(command: Command) -> int:
    from sweeps.planning import reference

    print("\n".join(reference.lines(command.arguments.part)))
    return DONE


VERB = Verb(
    "config",
    "list every setting of the configuration: default, values, role, meaning",
    "olmo-jax config train.optimizer",
    _carry_out,
    _arguments,
)
