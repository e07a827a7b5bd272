"""What is done with a checkpoint, as configuration."""

import dataclasses

from olmo_jax.config import require


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """Continued training of a final checkpoint on one domain, with a fresh optimiser and linear decay to 0.

    Attributes:
      domain: trained on; "" leaves fine-tuning out. learning_rates: peaks, each a member of the cohort.
      tokens: of each. batch_size: sequences a step. warmup_fraction, weight_decay: as in OptimizerConfig.
      data_seed: order of the windows, the same for all.
    """

    domain: str = ""
    learning_rates: tuple[float, ...] = (1e-4, 1e-3)
    tokens: int = 1_000_000
    batch_size: int = 32
    warmup_fraction: float = 0.1
    weight_decay: float = 0.0
    data_seed: int = 0

    def check(self, at: str) -> None:
        for rate in self.learning_rates:
            require(rate > 0, f"{at}.learning_rates", self.learning_rates, "needs positive numbers")
        require(
            len(set(self.learning_rates)) == len(self.learning_rates),
            f"{at}.learning_rates",
            self.learning_rates,
            "names a rate twice",
        )
        for name in ("tokens", "batch_size"):
            require(getattr(self, name) > 0, f"{at}.{name}", getattr(self, name), "needs a positive whole number")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """The evaluations of a sweep.

    Attributes:
      tokens_per_domain: validation tokens of each domain that losses are taken over.
      batch_size: windows that go through the models at a time.
      all_checkpoints: take the loss by domain at every checkpoint, or else at the last; the rest is at the last only.
      quantize_bits: widths of round-to-nearest quantisation of the blocks' matrices, by output channel.
    """

    tokens_per_domain: int = 16384
    batch_size: int = 32
    all_checkpoints: bool = True
    quantize_bits: tuple[int, ...] = (8, 4, 3)
    finetune: FinetuneConfig = FinetuneConfig()

    def check(self, at: str) -> None:
        for name in ("tokens_per_domain", "batch_size"):
            require(getattr(self, name) > 0, f"{at}.{name}", getattr(self, name), "needs a positive whole number")
        for bits in self.quantize_bits:
            require(2 <= bits <= 8, f"{at}.quantize_bits", self.quantize_bits, "needs widths of 2 to 8 bits")
