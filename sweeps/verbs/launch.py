"""olmo-jax launch"""

import argparse
import sys

from sweeps.verbs.stage import plan_of
from sweeps.verbs.verb import DONE, Command, Verb, mirror_argument, workdir_of


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", required=True, metavar="ENGINE", help="slurm, local or sky (a SkyPilot task file)")
    parser.add_argument(
        "--parallel", type=int, metavar="N", help="maximum number of tasks at a time, 0 for all (local: 1)"
    )
    parser.add_argument("--minutes", type=int, metavar="N", help="time limit of a Slurm task, which is then requeued")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs per task")
    parser.add_argument("--cpus", type=int, metavar="N", help="CPUs per task")
    parser.add_argument("--memory_gb", type=int, metavar="N", help="memory per task, in GB")
    parser.add_argument("--partition", metavar="NAME", help="Slurm partition")
    parser.add_argument("--account", metavar="NAME", help="Slurm account")
    parser.add_argument(
        "--more",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of sbatch (KEY: a flag, KEY=: omit it) or of SkyPilot's resources (may be repeated)",
    )
    mirror_argument(parser)


def _carry_out(command: Command) -> int:
    from olmo_jax.checkpoint import check_place
    from sweeps.planning import record
    from sweeps.planning.branches import depths
    from sweeps.remote.launch import launch
    from sweeps.remote.options import Options

    arguments, workdir = command.arguments, workdir_of(command.arguments)
    plan = plan_of(command)
    check_place(workdir)
    plan = record.join(workdir, plan)
    values = {name: getattr(arguments, name) for name in Options.__dataclass_fields__}
    options = Options(**{k: v for k, v in values.items() if v is not None} | {"more": tuple(arguments.more)})
    task = [sys.executable, "-m", "sweeps.cli", "run", *command.overrides, f"--workdir={workdir}"]
    task += [f"--mirror={arguments.mirror}"] if arguments.mirror else []
    print("\n".join(launch(workdir, task, range(len(plan.cohorts)), options, depths(plan.cohorts))))
    return DONE


VERB = Verb(
    "launch",
    "run a sweep on Slurm, in processes on this machine, or in a cloud",
    "olmo-jax launch --config=paper:gpu --workdir=runs/paper --engine=slurm --gpus=1",
    _carry_out,
    _arguments,
    config="needed",
    workdir="needed",
)
