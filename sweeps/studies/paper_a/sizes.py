"""What the labels 4M to 75M may mean, and the peak learning rate of each model: paper A publishes neither.

Two readings of the labels, by what is counted:

    blocks   parameters without the embedding and the unembedding: 4m is d 256, L 4 [ours]
    head     parameters without the embedding alone, as OLMo counts: 4m is d 64, L 8 [code]

The public OLMo-style suites of small models that we know all count as in "head" (methods.md, section 7).
"""

from olmo_jax.config import ConfigError, ModelConfig
from olmo_jax.config.model import head_count
from olmo_jax.config.presets import STAND_INS, STAND_INS_WITH_HEAD

SIZES = {"blocks": STAND_INS, "head": STAND_INS_WITH_HEAD}
# A label and its count differ by at most 7 % with the tokenizer of OLMo.
_MOST_OFF = 0.1

NORMS = {"layer": ("layer_norm", 1e-5), "rms": ("rms_norm", 1e-6)}  # kind, epsilon: OLMo-1's, DataDecide's [code]

RATE_RULES = ("fixed", "ladder", "neighbours")
_FIXED = 3e-4  # [ours]
_FEW_TOKENS = 16_000_000_000


def peak_rate(rule: str, model: ModelConfig, tokens: int) -> float:
    """Return the peak learning rate of a model of full size.

    Args:
      rule: "fixed", one for all [ours]; "ladder", .0047 (N / 108e6)^(-1/3) with N as OLMo counts, that of DataDecide
        [code]; "neighbours", 3e-3 up to 16B tokens and 1e-3 beyond, that of a co-author's models of 20M [code].
      tokens: the budget, which "neighbours" depends on.
    """
    if rule == "ladder":
        return ladder_rate(head_count(model))
    if rule == "neighbours":
        return 3e-3 if tokens <= _FEW_TOKENS else 1e-3
    return _FIXED


def ladder_rate(count: int) -> float:
    """Return .0047 (N / 108e6)^(-1/3), the peak of OLMo's model ladder and of DataDecide for N parameters [code]."""
    return 0.0047 * (count / 108e6) ** (-1 / 3)


def check_labels(sizes: dict[str, ModelConfig], reading: str) -> None:
    """Raise ConfigError if the vocabulary makes the count with the head contradict a size's label."""
    if reading != "head":
        return
    for label, model in sizes.items():
        count = head_count(model)
        if abs(count / (float(label.removesuffix("m")) * 1e6) - 1) > _MOST_OFF:
            raise ConfigError(
                f"paper.py: sizes=head with a vocabulary of {model.vocab_size:,} gives {label} {count / 1e6:.1f}M "
                "parameters with the head, which contradicts its label; choose a vocabulary near 50,280, or "
                "sizes=blocks"
            )


def counts(sizes: dict[str, ModelConfig]) -> str:
    """Return the parameters of each size with the head and without the embedding, in words."""
    return ", ".join(f"{label} {head_count(model) / 1e6:.3g}M" for label, model in sizes.items())
