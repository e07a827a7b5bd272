"""What a verb of the command line is, and the arguments that several verbs share."""

import argparse
import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

# Exit codes; 75 (EX_TEMPFAIL): stopped by a signal after a checkpoint, so that the same command resumes.
DONE, FAILED, BAD, STOPPED = 0, 1, 2, 75


class Command(NamedTuple):
    """One command: its parsed arguments, its --config and --config.key=value strings, and its text as typed."""

    arguments: argparse.Namespace
    overrides: list[str]
    text: str


class Verb(NamedTuple):
    """A verb of the command line.

    Attributes:
      help: what it does, in one line. example: a command. carry_out: does it and returns the exit code; it imports
        heavy modules itself, so that --help answers at once.
      arguments: adds its arguments to a parser. config, workdir: whether it takes --config and --workdir ("needed",
        "taken", "": no).
    """

    name: str
    help: str
    example: str
    carry_out: Callable[[Command], int]
    arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    config: str = ""
    workdir: str = ""


def json_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print only JSON on stdout")


def mirror_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mirror",
        type=os.path.expanduser,
        default="",
        metavar="URL",
        help="copy checkpoints and metrics to this folder, s3:// or gs://; an empty --workdir is first filled from it",
    )


def training_arguments(parser: argparse.ArgumentParser) -> None:
    mirror_argument(parser)
    parser.add_argument(
        "--profile",
        type=_steps,
        default=(),
        metavar="FIRST:LAST",
        help="trace these steps of each cohort for TensorBoard or Perfetto, into profile/ of --workdir",
    )


def _steps(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last:
        raise argparse.ArgumentTypeError(f"{text!r}: needs two steps, counted from 1, such as 10:20")
    return first, last


def run_and_step_arguments(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument("run", type=os.path.expanduser, metavar="RUN", help=help)
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step (default: the last)")


def names(text: str) -> tuple[str, ...]:
    """Return the parts of a list that are separated by commas."""
    return tuple(filter(None, text.split(",")))


def workdir_of(arguments: argparse.Namespace) -> Any:
    """Return the folder of --workdir, which may not exist yet. Raises ConfigError if it can't be a folder."""
    from etils import epath

    from olmo_jax.config import require

    text = arguments.workdir
    require("://" not in text, "--workdir", text, "needs a folder; --mirror=URL copies it to an object store")
    invalid = re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", text)  # a byte that isn't UTF-8 is a surrogate
    require(not invalid, "--workdir", text, "needs a name in UTF-8, without control characters")
    path = epath.Path(os.path.abspath(text))
    existing = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    what = "is a file" if os.path.exists(existing) else "is a broken link"
    require(os.path.isdir(existing), "--workdir", text, f"{existing} {what}; name a folder")
    return path
