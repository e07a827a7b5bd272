"""Parse the command line's arguments, including the overrides of the configuration, and print --help."""

import argparse
import os
import re
from collections.abc import Sequence
from typing import NoReturn

from olmo_jax.errors import UserError
from sweeps.verbs import GROUPS, VERBS


class UsageError(UserError):
    """A command line that can't be parsed; the message names the argument at fault."""

    exit_code = 2


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the parsed arguments of a command (with `verb`), and its --config and --config.key=value strings.

    Raises UsageError; --help prints and exits, as argparse does.
    """
    others, overrides = _split(argv)
    arguments = parser().parse_args(others)
    verb, workdir = VERBS[arguments.verb], getattr(arguments, "workdir", "")
    if overrides and not verb.config:
        raise UsageError(f"olmo-jax {arguments.verb} takes no --config")
    if verb.config == "needed" and not overrides:
        raise UsageError(f"olmo-jax {arguments.verb} needs --config=FILE, such as --config=demo")
    if verb.workdir == "needed" and not workdir:
        raise UsageError(f"olmo-jax {arguments.verb} needs --workdir=DIR")
    return arguments, overrides


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        about = "" if self.prog == "olmo-jax" else f"{self.prog}: "  # the line begins with olmo-jax anyway
        raise UsageError(f"{about}{message}; {self.prog} --help says more")


def parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    width = max(map(len, VERBS))
    groups = [
        "\n".join([f"{name}:", *(f"  {verb.name:<{width}}  {verb.help}" for verb in verbs)])
        for name, verbs in GROUPS.items()
    ]
    parser = _Parser(
        prog="olmo-jax",
        usage="olmo-jax VERB [...]\n       olmo-jax VERB --help",
        description="Train cohorts of small language models and measure the geometry of their weights.\n\n"
        + "\n\n".join(groups),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: olmo-jax run --config=demo --config.train.tokens=1e5 --workdir=runs/demo\n"
        "`olmo-jax config` lists everything that --config.a.b=value can set.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, prog="olmo-jax", metavar="VERB", help=argparse.SUPPRESS)
    for name, verb in VERBS.items():
        verb_parser = verbs.add_parser(
            name,
            help=verb.help,
            description=f"{verb.help[0].upper()}{verb.help[1:]}.",
            epilog=f"example: {verb.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,  # keeps an example on one line
            allow_abbrev=False,
        )
        if verb.config:
            # parse() takes --config out before argparse sees it; it is declared only for --help and completion.
            verb_parser.add_argument(
                "--config",
                metavar="FILE[:arg]",
                help="a file with get_config, or a name such as demo or paper; --config.a.b=value overrides a setting",
            )
        if verb.workdir:
            verb_parser.add_argument(
                "--workdir",
                type=os.path.expanduser,
                default="",
                metavar="DIR",
                help="the working directory, which holds all files of the sweep",
            )
        verb.arguments(verb_parser)
    return parser


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate the overrides of the configuration, each as one `--key=value`, from the other arguments."""
    others: list[str] = []
    overrides: list[str] = []
    remaining = list(argv)
    while remaining:
        argument = remaining.pop(0)
        if not re.match(r"--(no)?config(\.|=|$)", argument):
            others.append(argument)
        elif "=" in argument or argument.startswith("--noconfig") or not remaining or remaining[0].startswith("--"):
            overrides.append(argument)  # a boolean needs no value
        else:
            overrides.append(f"{argument}={remaining.pop(0)}")
    return others, [
        re.sub("^--config=(~.*)", lambda match: f"--config={os.path.expanduser(match[1])}", o) for o in overrides
    ]
