"""The configuration of a branch: a run that starts from a checkpoint of another run, its parent."""

import dataclasses
from typing import Any

from olmo_jax.config.field import BELOW_ONE, NOT_NEGATIVE, Role, setting
from olmo_jax.config.validation import ConfigError, Settings, require


@dataclasses.dataclass(frozen=True)
class BranchConfig(Settings):
    """Where a run starts from, if not from random parameters.

    Steps and tokens count from the root: a branch at step 100 of its parent takes step 101 first, with the learning
    rate and the text of that step.
    """

    parent: str = setting(
        "",
        Role.DATA,
        'The checkpoint to start from, as "RUN@STEP"; "" for random parameters. RUN is the id of a run, or its name '
        "where this, together with the seeds of the branch, is enough to find it.",
    )
    workdir: str = setting("", Role.PLACE, 'The working directory of the parent; "" if it is a run of the same sweep.')
    moments: bool = setting(True, Role.DATA, "Also start from the optimiser's moments; otherwise they start from 0.")
    average_last: int = setting(
        0,
        Role.DATA,
        "Start from the mean of the parameters of this many checkpoints of the parent, the last of which is that at "
        "STEP; 0: only that one. With no further step, the branch is an average of checkpoints that can be evaluated.",
        bound=NOT_NEGATIVE,
    )
    ema: bool = setting(
        False,
        Role.DATA,
        "Start from the parent's moving average of the parameters (its checkpoint.ema_decay).",
    )
    start_step: int = setting(
        0,
        Role.STATIC,
        "The step that the branch starts after, in its own batches; filled in when the sweep is planned.",
        bound=NOT_NEGATIVE,
        unit="steps",
    )
    averaged_steps: tuple[int, ...] = setting(
        (),
        Role.DATA,
        "The parent's checkpoints that average_last means; filled in when the sweep is planned.",
        unit="steps",
    )
    ema_decay: float = setting(
        0.0,
        Role.DATA,
        "The decay of the moving average that ema means; filled in when the sweep is planned.",
        bound=BELOW_ONE,
    )
    parent_configuration: str = setting(
        "", Role.DATA, "The parent without its seeds; filled in when the sweep is planned."
    )

    @property
    def run(self) -> str:
        """The parent's id, or its name before the sweep is planned."""
        return self.parent.rpartition("@")[0]

    @property
    def step(self) -> int:
        """The parent's step, in its own batches."""
        return int(self.parent.rpartition("@")[2])

    def check_fields(self, at: str) -> None:
        run, _, step = self.parent.rpartition("@")
        require(
            not self.parent or (bool(run) and step.isascii() and step.isdigit()),
            f"{at}.parent",
            self.parent,
            'needs RUN@STEP, such as "trunk@1000"',
        )
        for name, default in _DEFAULTS.items():
            require(
                bool(self.parent) or getattr(self, name) == default,
                f"{at}.{name}",
                getattr(self, name),
                f"has no effect without {at}.parent; name a run and step, or leave this out",
            )

        require(
            not (self.ema and self.average_last),
            f"{at}.average_last",
            self.average_last,
            f"contradicts {at}.ema = True, which is another average; give each a run of its own",
        )


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(BranchConfig) if field.name != "parent"}


def check_branch(config: Any, at: str) -> None:
    """Raise ConfigError where a branch doesn't fit its run's budget or origin.

    Args:
      config: the TrainConfig. at: its dotted key.
    """
    branch = config.branch
    if not branch.parent:
        return
    require(
        not config.imported, f"{at}.branch.parent", branch.parent, "is of an imported run, which isn't trained here"
    )
    # Without further steps, only an average is something new.
    least = branch.start_step + (0 if branch.average_last or branch.ema else 1)
    if config.total_steps < least:
        raise ConfigError(
            f"{at}.tokens = {config.tokens}: counts from the root, and so is {config.total_steps} steps of "
            f"{config.tokens_per_step} tokens, while the branch starts after step {branch.start_step}; raise it to at "
            f"least {least * config.tokens_per_step}"
        )
