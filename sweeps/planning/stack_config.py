"""The maximum size of a stack, the members of a cohort that a device holds at a time; `config.parts` of a sweep."""

import dataclasses

from olmo_jax.config.field import Role, at_least, setting
from olmo_jax.config.validation import Settings


@dataclasses.dataclass(frozen=True)
class StackConfig(Settings):
    """The maximum size of a stack, which is not part of any id and doesn't change what is trained.

    All stacks of a cohort write checkpoints at the same steps.
    """

    most_members: int = setting(
        0,
        Role.EXECUTION,
        "Maximum number of members in a stack; 0: as many as memory allows.",
        bound=at_least(0, "needs 0 (auto) or a positive number"),
    )
    memory_gb: float = setting(
        0.0,
        Role.EXECUTION,
        "Memory of a device; 0: what the device reports.",
        bound=at_least(0, "needs 0 (auto) or a positive number"),
        unit="1e9 bytes",
    )
