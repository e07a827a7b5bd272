"""How large a stack, the members of a cohort that one device holds at a time, may be; `config.parts` of a sweep."""

import dataclasses

from olmo_jax.config.field import Role, at_least, setting
from olmo_jax.config.validation import Settings


@dataclasses.dataclass(frozen=True)
class StackConfig(Settings):
    """How large a stack may be; no part of any id, nor of what is trained. Stacks share the steps of their "
    "checkpoints."""

    most_members: int = setting(
        0,
        Role.EXECUTION,
        "Members of a stack at most; 0: as many as memory allows.",
        bound=at_least(0, "needs 0 (auto) or a positive number"),
    )
    memory_gb: float = setting(
        0.0,
        Role.EXECUTION,
        "Memory of a device; 0: what the device says it has.",
        bound=at_least(0, "needs 0 (auto) or a positive number"),
        unit="1e9 bytes",
    )
