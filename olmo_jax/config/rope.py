"""How a decoder's rotary frequencies are changed for contexts longer than those that it was pre-trained on."""

import dataclasses

from olmo_jax.config.field import NOT_NEGATIVE, Role, at_least, choice, setting
from olmo_jax.config.validation import Settings, require


@dataclasses.dataclass(frozen=True)
class RopeScaling(Settings):
    """Scaling of the rotary frequencies, under the names that Hugging Face's config.json uses for its kinds."""

    kind: str = setting(
        "none",
        Role.STATIC,
        'Which frequencies are divided: "none"; "linear", all; "llama3" and "yarn", those that turn fewer than `low` '
        "times in the original context, while those that turn more than `high` times are kept; in between, llama3 "
        "interpolates by the number of turns and yarn by the index of the frequency.",
        bound=choice("none", "linear", "llama3", "yarn"),
    )
    factor: float = setting(
        1.0, Role.STATIC, "Divisor of the frequencies.", bound=at_least(1, "needs a number of 1 or more")
    )
    original_length: int = setting(
        0, Role.STATIC, "The context length of pre-training; llama3 and yarn need it.", unit="tokens"
    )
    low: float = setting(
        1.0,
        Role.STATIC,
        "Turns in the original context below which a frequency is divided: llama3's low_freq_factor, yarn's beta_slow.",
        bound=NOT_NEGATIVE,
    )
    high: float = setting(
        4.0,
        Role.STATIC,
        "Turns above which they are kept: llama3's high_freq_factor, yarn's beta_fast.",
        bound=NOT_NEGATIVE,
    )
    attention_factor: float = setting(
        1.0,
        Role.STATIC,
        "Factor by which yarn multiplies the rotated queries, and the keys.",
        bound=NOT_NEGATIVE,
    )

    def check_fields(self, at: str) -> None:
        if self.kind in ("llama3", "yarn"):
            require(
                self.original_length > 0,
                f"{at}.original_length",
                self.original_length,
                f"{self.kind} scaling needs the context length of pre-training",
            )
            require(self.low < self.high, f"{at}.high", self.high, f"needs a number above {at}.low = {self.low}")
