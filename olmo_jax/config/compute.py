"""How a step is carried out, as far as the user specifies it; execution/plan.py resolves "auto"."""

import dataclasses

from olmo_jax.config.field import Role, at_least, choice, setting
from olmo_jax.config.validation import Settings

# Implementations of attention (execution/attention.py), and ways of computing the layers and the members.
FORMS = ("dense", "blocked", "cudnn")
LAYERS = ("unrolled", "scanned")
MAPPINGS = ("vmap", "map")
_AUTO_OR_POSITIVE = at_least(0, "needs 0 (auto) or a positive number")


@dataclasses.dataclass(frozen=True)
class ComputeConfig(Settings):
    """How a step is carried out; not part of a run's identity."""

    attention: str = setting(
        "auto",
        Role.EXECUTION,
        "Implementation of attention (see attention.causal_attention); auto chooses by backend.",
        bound=choice("auto", *FORMS),
    )
    layers: str = setting(
        "auto",
        Role.EXECUTION,
        'How layers are compiled: "unrolled", each separately; "scanned", once for all of them; auto chooses by depth.',
        bound=choice("auto", *LAYERS),
    )
    remat: bool = setting(
        False, Role.EXECUTION, "Recompute activations within blocks for the gradient instead of storing them."
    )
    microbatches: int = setting(
        0,
        Role.EXECUTION,
        "Parts into which a batch is split, their gradients averaged; 0: as few as memory allows.",
        bound=_AUTO_OR_POSITIVE,
    )
    steps_per_call: int = setting(
        0,
        Role.EXECUTION,
        "Steps that one call runs on the device; 0: chosen by the cost of a step. A call always ends where a probe or "
        "a checkpoint is due.",
        bound=_AUTO_OR_POSITIVE,
        unit="steps",
    )
