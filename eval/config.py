"""What is done with a checkpoint, as configuration."""

import dataclasses

from olmo_jax.config import require


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """Continued training of a final checkpoint on one domain, with a fresh optimiser and linear decay to 0.

    Betas, eps and clipping are OptimizerConfig's defaults; z-loss and what is decayed are as in the run's training.

    Attributes:
      domain: trained on; "" leaves fine-tuning out. learning_rates: peaks, each a member of the cohort.
      tokens: of each. batch_size: sequences a step. warmup_fraction, weight_decay: as in OptimizerConfig.
      data_seed: order of the windows, and dropout, the same for all.
    """

    domain: str = ""
    learning_rates: tuple[float, ...] = (1e-4, 1e-3)
    tokens: int = 1_000_000
    batch_size: int = 32
    warmup_fraction: float = 0.1
    weight_decay: float = 0.0
    data_seed: int = 0

    def check(self, at: str) -> None:
        rates = self.learning_rates
        require(all(rate > 0 for rate in rates), f"{at}.learning_rates", rates, "needs positive numbers")
        # The name of a result holds the rate to six digits.
        unique = len({f"{rate:g}" for rate in rates}) == len(rates)
        require(unique, f"{at}.learning_rates", rates, "names a rate twice (to six digits)")
        for name in ("tokens", "batch_size"):
            require(getattr(self, name) > 0, f"{at}.{name}", getattr(self, name), "needs a positive whole number")
        require(self.weight_decay >= 0, f"{at}.weight_decay", self.weight_decay, "needs a number of 0 or more")
        require(0 <= self.data_seed < 2**32, f"{at}.data_seed", self.data_seed, "needs a number in [0, 2^32)")
        require(
            0 <= self.warmup_fraction <= 1, f"{at}.warmup_fraction", self.warmup_fraction, "needs a number in [0, 1]"
        )


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
        bits = self.quantize_bits
        require(all(2 <= b <= 8 for b in bits), f"{at}.quantize_bits", bits, "needs widths of 2 to 8 bits")
        require(len(set(bits)) == len(bits), f"{at}.quantize_bits", bits, "names a width twice")
