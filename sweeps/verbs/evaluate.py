"""olmo-jax evaluate"""

import argparse
import dataclasses
import re
from typing import Any

from sweeps.verbs.stage import fetch, plan_of, working
from sweeps.verbs.verb import DONE, STOPPED, Command, Verb, mirror_argument, names, workdir_of


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only",
        type=names,
        default=(),
        metavar="KINDS",
        help="kinds or names of results, such as gptq,tasks; * and ? are wildcards (default: all that are configured)",
    )
    parser.add_argument("--runs", default="*", metavar="GLOB", help="only runs whose ids match (default: all)")
    parser.add_argument(
        "--steps",
        type=_checkpoints,
        default="",
        metavar="STEPS",
        help="final, all, or a list such as 100,200 (default: as configured for the loss, final for everything else)",
    )
    mirror_argument(parser)


def _checkpoints(text: str) -> str | tuple[int, ...]:
    if text in ("", "final", "all"):
        return text
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r}: needs final, all, or steps of checkpoints such as 100,200")
    return tuple(map(int, text.split(",")))


def _carry_out(command: Command) -> int:
    from eval.evaluate import Choice
    from olmo_jax.console import say
    from sweeps.running import stages

    arguments, workdir = command.arguments, workdir_of(command.arguments)
    fetch(command)
    plan = _plan(command)
    with working(command) as stop:
        plan, indexes = stages.begin(workdir, plan, to_train=False)
        choice = Choice(arguments.only, arguments.runs, arguments.steps)
        if not stages.evaluate_all(workdir, plan, indexes, stop, choice):
            return STOPPED
        say(f"`olmo-jax report --workdir={workdir}` takes the results into the table and the page")
        return DONE


def _plan(command: Command) -> Any:
    """Return the plan of --config, or the recorded one with the changes of --config.evaluation.key=value."""
    from sweeps.planning.config_file import override_evaluation

    if any(override.startswith("--config=") for override in command.overrides):
        return plan_of(command)
    plan = plan_of(command._replace(overrides=[]))
    if not command.overrides:
        return plan
    return dataclasses.replace(plan, evaluation=override_evaluation(plan.evaluation, command.overrides))


VERB = Verb(
    "evaluate",
    "evaluate trained runs: losses, quantisation, fine-tuning, noise, tasks",
    "olmo-jax evaluate --workdir=demo --only=gptq --steps=all",
    _carry_out,
    _arguments,
    config="taken",
    workdir="needed",
)
