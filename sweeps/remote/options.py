"""The options of `launch`: the engine, and the resources of each task."""

import dataclasses
import re

from olmo_jax.config.validation import one_of, require
from sweeps.remote.task import SECONDS_TO_STOP

_LEAST_MINUTES = 10
_OPTIONS_OF_ENGINE = {
    "slurm": {"parallel", "minutes", "gpus", "cpus", "memory_gb", "partition", "account", "more"},
    "local": {"parallel", "gpus"},
    "sky": {"gpus", "cpus", "memory_gb", "more"},
}
_SET_BY_LAUNCH = ("array", "signal", "output", "error", "open-mode", "time", "requeue")


@dataclasses.dataclass(frozen=True)
class Options:
    """Where tasks run, and the resources of each task.

    Attributes:
      engine: slurm, local (processes of this machine) or sky (cloud machines by SkyPilot).
      parallel: maximum number of tasks at a time, 0: all. None: all of them on Slurm, one on this machine.
      minutes: time limit of a task on Slurm; one that needs longer stops in time and is requeued.
      gpus, cpus, memory_gb: per task. 0: the engine's default; for gpus none, or on this machine all.
      partition, account: those of Slurm.
      more: further parameters as "key=value", of sbatch (a flag as "key" alone, an option to leave out as "key=") or of
        SkyPilot's resources.
    """

    engine: str
    parallel: int | None = None
    minutes: int = 24 * 60
    gpus: int = 0
    cpus: int = 0
    memory_gb: int = 0
    partition: str = ""
    account: str = ""
    more: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise ConfigError for an invalid value, and for one that the engine would ignore."""
        one_of(self.engine, tuple(_OPTIONS_OF_ENGINE), "--engine")
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            used = field.name in _OPTIONS_OF_ENGINE[self.engine] or value == field.default
            require(used, f"--{field.name}", value, f"has no effect with --engine={self.engine}; leave it out")
        for name in ("parallel", "gpus", "cpus", "memory_gb"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"--{name}", value, "needs 0 or more")
        need = f"needs {_LEAST_MINUTES} or more; the last {SECONDS_TO_STOP // 60} are kept for a checkpoint"
        require(self.minutes >= _LEAST_MINUTES, "--minutes", self.minutes, need)
        form = r"[A-Za-z][\w-]*=.+" if self.engine == "sky" else r"[A-Za-z][\w-]*(=.*)?"
        for item in self.more:
            require(bool(re.fullmatch(form, item)), "--more", item, "needs key=value")
            require(
                item.split("=")[0].replace("_", "-") not in _SET_BY_LAUNCH, "--more", item, "is set by launch itself"
            )
