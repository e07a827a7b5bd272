"""How a step is to be carried out, as far as the user says it: see execution/plan.py for what "auto" becomes."""

import dataclasses

from olmo_jax.config.validation import one_of, require

# Forms of attention (execution/attention.py), of walking through the layers, and of walking through the members.
FORMS = ("dense", "blocked", "cudnn")
LAYERS = ("unrolled", "scanned")
MAPPINGS = ("vmap", "map")


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How a step is carried out; no part of a run's identity.

    Attributes:
      attention: "dense", "blocked" or "cudnn" (see attention.causal_attention); "auto" by backend.
      layers: "unrolled", each compiled, or "scanned", one for all; "auto" by depth.
      remat: activations within blocks are computed again for the gradient instead of kept.
      microbatches: a batch goes through in so many parts, their gradients averaged; 0: as few as memory allows.
      steps_per_call: steps that go to the device in one call; 0: by their length. Calls end where a probe or a
        checkpoint is due, whatever this is.
    """

    attention: str = "auto"
    layers: str = "auto"
    remat: bool = False
    microbatches: int = 0
    steps_per_call: int = 0

    def check(self, at: str) -> None:
        one_of(self.attention, ("auto", *FORMS), f"{at}.attention")
        one_of(self.layers, ("auto", *LAYERS), f"{at}.layers")
        for name in ("microbatches", "steps_per_call"):
            require(
                getattr(self, name) >= 0, f"{at}.{name}", getattr(self, name), "needs 0 (auto) or a positive number"
            )
