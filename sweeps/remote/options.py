"""What `launch` is asked for: the engine, and what each of its tasks gets."""

import dataclasses
import re

from olmo_jax.config.validation import one_of, require
from sweeps.remote.task import SECONDS_TO_STOP

_LEAST_MINUTES = 10
_TAKES = {
    "slurm": {"parallel", "minutes", "gpus", "cpus", "memory_gb", "partition", "account", "more"},
    "local": {"parallel", "gpus"},
    "sky": {"gpus", "cpus", "memory_gb", "more"},
}
_OURS = ("array", "signal", "output", "error", "open-mode", "time", "requeue")


@dataclasses.dataclass(frozen=True)
class Options:
    """Where tasks run, and what each of them gets.

    Attributes:
      engine: slurm, local (processes of this machine) or sky (cloud machines by SkyPilot).
      parallel: most tasks at once, 0: all. None: all of them on Slurm, one at a time on this machine.
      minutes: time limit of a task on Slurm; one that needs longer stops in time and comes back.
      gpus, cpus, memory_gb: of a task. 0: what the engine gives unasked; for gpus none, or on this machine all.
      partition, account: Slurm's.
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
        """Raises ConfigError for a value that can't be, and for one that the engine would not heed."""
        one_of(self.engine, tuple(_TAKES), "--engine")
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            heeded = field.name in _TAKES[self.engine] or value == field.default
            require(heeded, f"--{field.name}", value, f"means nothing to --engine={self.engine}; leave it out")
        for name in ("parallel", "gpus", "cpus", "memory_gb"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"--{name}", value, "needs 0 or more")
        enough = f"needs {_LEAST_MINUTES} or more; the last {SECONDS_TO_STOP // 60} are kept for a checkpoint"
        require(self.minutes >= _LEAST_MINUTES, "--minutes", self.minutes, enough)
        form = r"[A-Za-z][\w-]*=.+" if self.engine == "sky" else r"[A-Za-z][\w-]*(=.*)?"
        for item in self.more:
            require(bool(re.fullmatch(form, item)), "--more", item, "needs key=value")
            require(item.split("=")[0].replace("_", "-") not in _OURS, "--more", item, "is set by launch itself")
