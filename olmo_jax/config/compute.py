"""How a step is to be carried out, as far as the user says it: see execution/plan.py for what "auto" becomes."""

import dataclasses

from olmo_jax.config.field import Role, at_least, choice, setting
from olmo_jax.config.validation import Settings

# Forms of attention (execution/attention.py), of walking through the layers, and of walking through the members.
FORMS = ("dense", "blocked", "cudnn")
LAYERS = ("unrolled", "scanned")
MAPPINGS = ("vmap", "map")
_AUTO_OR_POSITIVE = at_least(0, "needs 0 (auto) or a positive number")


@dataclasses.dataclass(frozen=True)
class ComputeConfig(Settings):
    """How a step is carried out; no part of a run's identity."""

    attention: str = setting(
        "auto",
        Role.EXECUTION,
        "Form of attention (see attention.causal_attention); auto by backend.",
        bound=choice("auto", *FORMS),
    )
    layers: str = setting(
        "auto",
        Role.EXECUTION,
        "Layers unrolled, each compiled, or scanned, one for all; auto by depth.",
        bound=choice("auto", *LAYERS),
    )
    remat: bool = setting(
        False, Role.EXECUTION, "Compute activations within blocks again for the gradient instead of keeping them."
    )
    microbatches: int = setting(
        0,
        Role.EXECUTION,
        "Parts in which a batch goes through, their gradients averaged; 0: as few as memory allows.",
        bound=_AUTO_OR_POSITIVE,
    )
    steps_per_call: int = setting(
        0,
        Role.EXECUTION,
        "Steps that go to the device in one call; 0: by their length. Calls end where a probe or a checkpoint is due, "
        "whatever this is.",
        bound=_AUTO_OR_POSITIVE,
        unit="steps",
    )
