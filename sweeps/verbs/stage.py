"""What the verbs that work on a sweep have in common: its plan, its files from a mirror, and stopping."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from sweeps.verbs.verb import Command, workdir_of


def plan_of(command: Command) -> Any:
    """Return the plan of --config, or, without it, the one that the working directory records."""
    from sweeps.planning import plan as plans
    from sweeps.planning import record
    from sweeps.planning.config_file import load_config

    if command.overrides:
        return plans.resolve(plans.read_sweep(load_config(command.overrides)))
    return record.recorded_plan(workdir_of(command.arguments))


def fetch(command: Command) -> None:
    """Fill a working directory that has no sweep yet from --mirror."""
    if command.arguments.mirror:
        from sweeps.remote import mirror

        mirror.fetch(command.arguments.mirror, workdir_of(command.arguments))


@contextlib.contextmanager
def working(command: Command) -> Iterator[Callable[[], bool]]:
    """Cache compiled programs and update the mirror; yield a function that returns whether a signal asked to stop."""
    from sweeps.remote.mirror import mirrored
    from sweeps.running import stages

    workdir = workdir_of(command.arguments)
    stages.keep_compiled(workdir)
    with stages.stop_on_signals() as stop, mirrored(workdir, command.arguments.mirror):
        yield stop
