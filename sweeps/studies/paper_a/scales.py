"""How the suite is reduced to fit a machine [ours]: which quantities keep their ratios, and which can't."""

import dataclasses

from olmo_jax.config import ModelConfig
from sweeps.studies.paper_a.sizes import peak_rate

# Sequences, tokens, and shares of the peak [A]. The default is 32B, 128, .1, x1, 10 % [ours, as is the choice of
# combinations: the paper says 18 configurations, one factor at a time, and contradicts itself on .5 or .05, on the
# factors of the learning rate, and on the default final fraction].
BUDGETS = (8_000_000_000, 32_000_000_000, 128_000_000_000)
FACTORIAL_BATCHES = (32, 128, 512)
BETWEEN_BATCHES = (64, 256)
DECAYS = (0.01, 0.5)
RATE_FACTORS = (0.1, 10.0, 100.0)
FINAL_FRACTIONS = (0.0, 0.01)
BUDGET, BATCH, DECAY = 32_000_000_000, 128, 0.1
CONTEXT = 1024  # [ours]

LR_RULES = {"fixed": 0.0, "sqrt": 0.5, "linear": 1.0}

# Share of a weight that decay may take in one step before a reduced suite lowers its weight decay. The runs with ten
# and a hundred times the learning rate aren't considered: they would exceed any such bound.
_MOST_DECAYED = 0.5


@dataclasses.dataclass(frozen=True)
class Scale:
    """How the suite is reduced.

    Attributes:
      width, depth, heads, batch: divisors of these. context: in tokens. vocabulary: size of the tokenizer that is
        trained on the text.
      first_steps: steps at the largest batch on the smallest budget; determines the budgets.
      rate: the default peak of the largest size; 0 for that of the full suite.
      megabytes: size of the built-in corpus. epochs: maximum number of passes over the text.
      calibration_tokens: tokens that GPTQ reads for the published setting with groups.
    """

    width: int = 1
    depth: int = 1
    heads: int = 1
    batch: int = 1
    context: int = CONTEXT
    vocabulary: int = 50280
    first_steps: int = BUDGETS[0] // (FACTORIAL_BATCHES[-1] * CONTEXT)
    rate: float = 0.0
    dtype: str = "bfloat16"
    megabytes: float = 1000.0
    epochs: float = 1.0
    calibration_tokens: int = 524_288

    @property
    def is_full(self) -> bool:
        return self.batch == 1 and self.context == CONTEXT

    def tokens(self, budget: int) -> int:
        """Return a budget of the paper, reduced; unchanged at full scale."""
        if self.is_full:
            return budget
        return self.first_steps * FACTORIAL_BATCHES[-1] // self.batch * self.context * budget // BUDGETS[0]

    def model(self, full: ModelConfig) -> ModelConfig:
        """Return a model of the suite, reduced."""
        width = full.d_model // self.width
        return dataclasses.replace(
            full,
            vocab_size=self.vocabulary,
            d_model=width,
            d_ff=4 * width,
            n_layers=max(1, full.n_layers // self.depth),
            n_heads=max(1, full.n_heads // self.heads),
            context_length=max(self.context, 256),
            compute_dtype=self.dtype,
        )


_GPU = Scale(width=2, batch=4, context=256, first_steps=80, rate=1e-3, megabytes=200.0, epochs=8.0,
             calibration_tokens=65_536)  # fmt: skip
_CPU = Scale(width=8, depth=2, batch=32, context=64, first_steps=20, rate=5e-3, dtype="float32", megabytes=4.0,
             calibration_tokens=4096)  # fmt: skip
# By name and reading of the sizes. With the head counted, the vocabulary shrinks with the width, so that V / d stays;
# on a CPU by twice as much, since the softmax over 6,272 tokens doubled the time of the small models' steps. There the
# depth is a quarter, as most of such a step's time goes into starting small operations, and compiling takes as long.
SCALES = {
    "paper": {"blocks": Scale(), "head": Scale()},
    "gpu": {
        "blocks": dataclasses.replace(_GPU, vocabulary=4096),
        "head": dataclasses.replace(_GPU, vocabulary=25_088, heads=2),
    },
    "cpu": {
        "blocks": dataclasses.replace(_CPU, vocabulary=512, heads=2),
        "head": dataclasses.replace(_CPU, vocabulary=3136, heads=4, depth=4),
    },
}


@dataclasses.dataclass(frozen=True)
class Rates:
    """Learning rates and weight decays of a scale.

    Attributes:
      rule: peaks by size and budget (sizes.peak_rate). batch_rule: power of the batch size that peaks are scaled with.
      sizes: the models at full scale, by label.
    """

    scale: Scale
    rule: str
    batch_rule: float
    sizes: dict[str, ModelConfig]

    def peak(self, size: ModelConfig, budget: int, batch: int, factor: float = 1.0) -> float:
        """Return the peak of a model of full size, for a budget and batch size of the paper; reduced by one factor."""
        full = peak_rate(self.rule, size, budget)
        reduced = full * (self.scale.rate / self._reference if self.scale.rate else 1.0)
        return reduced * factor * (batch / BATCH) ** self.batch_rule

    @property
    def decay(self) -> float:
        """Return the default weight decay: `kept_decay`, or less if the steps don't allow that much."""
        return min(self.kept_decay, self._most_decay)

    @property
    def kept_decay(self) -> float:
        """Return the weight decay with which each configuration has the cumulative weight decay of the full suite."""
        if self.scale.is_full:
            return DECAY
        full_steps = BUDGET // (BATCH * CONTEXT)
        steps = self.scale.tokens(BUDGET) // (BATCH // self.scale.batch * self.scale.context)
        return rounded(DECAY * self._reference * full_steps / (self.scale.rate * steps), 3)

    @property
    def _reference(self) -> float:
        return peak_rate(self.rule, list(self.sizes.values())[-1], BUDGET)

    @property
    def _most_decay(self) -> float:
        default = [self.peak(size, BUDGET, BATCH) for size in self.sizes.values()]
        factorial = [self.peak(s, t, b) for s in self.sizes.values() for t in BUDGETS for b in FACTORIAL_BATCHES]
        return rounded(_MOST_DECAYED / max(max(factorial), max(default) * DECAYS[-1] / DECAY), 3)


def rounded(value: float, digits: int = 6) -> float:
    return float(f"{value:.{digits}g}")
