"""olmo-jax plan"""

import argparse
import json
from typing import Any

from sweeps.verbs.stage import plan_of
from sweeps.verbs.verb import DONE, Command, Verb, json_argument, workdir_of


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--flops",
        type=float,
        metavar="F",
        help="FLOP/s used to estimate hours (default: the matmul peak of this machine, measured)",
    )
    json_argument(parser)


def _carry_out(command: Command) -> int:
    from sweeps.planning import plan as plans

    plan = plan_of(command)
    print(json.dumps(plans.as_json(plan)) if command.arguments.json else "\n".join(_lines(command.arguments, plan)))
    return DONE


def _lines(arguments: argparse.Namespace, plan: Any) -> list[str]:
    from olmo_jax.checkpoint import check_place
    from olmo_jax.config import require
    from olmo_jax.logs.timing import matmul_peak
    from sweeps.planning import costs, record
    from sweeps.running import stages

    rate, source = arguments.flops, "as stated"
    if rate is None:
        rate, source = matmul_peak(plan.runs[0].config.model.compute_dtype), "the matmul peak measured here: at least"
    require(rate > 0, "--flops", rate, "needs a positive number")
    workdir = workdir_of(arguments) if arguments.workdir else None
    if workdir is not None:
        check_place(workdir)
        plan = record.join(workdir, plan)
        plan = record.with_stacks(workdir, plan)
    return costs.lines(plan, stages.training_tokens(workdir, plan), rate, source)


VERB = Verb(
    "plan",
    "show the cohorts, runs and steps of a sweep before anything runs",
    "olmo-jax plan --config=paper:cpu",
    _carry_out,
    _arguments,
    config="needed",
    workdir="taken",
)
