"""olmo-jax export"""

import argparse
import os

from sweeps.verbs.verb import DONE, Command, Verb, run_and_step_arguments, workdir_of


def _arguments(parser: argparse.ArgumentParser) -> None:
    run_and_step_arguments(parser, "id of a run in --workdir, or a pattern that matches only one run")
    parser.add_argument("--to", type=os.path.expanduser, required=True, metavar="FOLDER", help="the folder to write")
    parser.add_argument("--dtype", default="float32", help="float32, the default, or bfloat16")
    parser.add_argument(
        "--shard_mb", type=float, default=5000.0, metavar="MB", help="maximum size of one file (default: 5000)"
    )


def _carry_out(command: Command) -> int:
    from sweeps.models.export_run import export_run

    arguments = command.arguments
    architecture = export_run(
        workdir_of(arguments), arguments.run, arguments.to, arguments.step, arguments.dtype, arguments.shard_mb * 1e6
    )
    print(f"{arguments.to}: {architecture}, {arguments.dtype}")
    return DONE


VERB = Verb(
    "export",
    "write a run as a Hugging Face folder",
    "olmo-jax export 'olmo-4m-*' --workdir=runs/4m --to=olmo-4m",
    _carry_out,
    _arguments,
    workdir="needed",
)
