"""The configuration of interventions, which deliberately change the geometry of a member's unembedding."""

import dataclasses
import math
from typing import Any

from olmo_jax.config.field import NOT_NEGATIVE, Bound, Role, at_least, choice, declared, setting
from olmo_jax.config.validation import ConfigError, Settings, require

SUBSPACES = ("leading", "random")
# The settings whose subspace backward_subspace chooses.
PROJECTED = ("backward_rank", "update_rank")
_DECAY = Bound(
    "-1 or >= 0",
    "needs a weight decay of 0 or more, or -1 for optimizer.weight_decay",
    lambda value: value == -1 or 0 <= value < math.inf,
)


@dataclasses.dataclass(frozen=True)
class InterventionConfig(Settings):
    """What is done to a member's unembedding W during training; at its default each field does nothing.

    All but `penalty_metric` are values of each member, so that arms and doses train side by side in one program.
    """

    head_rank: int = setting(
        0,
        Role.TRACED,
        "Upper bound of the rank of W. W = U P with P [D, D], of which the first head_rank rows are trained and the "
        "others are 0 (model.factored_head is set automatically). 0: no bound.",
        bound=at_least(0, "needs a rank of 1 or more, or 0 for no bound"),
    )
    backward_rank: int = setting(
        0,
        Role.TRACED,
        "Dimensions of the final state that the loss's gradient keeps on its way into the trunk; the logits and the "
        "gradient of W are exact. 0: all.",
        bound=at_least(0, "needs a rank of 1 or more, or 0 for no projection"),
    )
    update_rank: int = setting(
        0,
        Role.TRACED,
        "Dimensions of the final state along which the optimiser's update of W, without weight decay, is kept; the "
        "gradient that the trunk receives is exact. 0: all.",
        bound=at_least(0, "needs a rank of 1 or more, or 0 for no projection"),
    )
    backward_subspace: str = setting(
        "leading",
        Role.TRACED,
        'What backward_rank and update_rank project onto: "leading", the right singular vectors of W with the largest '
        'singular values, computed anew at every step; "random", a fixed random subspace, the same for all members.',
        bound=choice(*SUBSPACES),
    )
    rank_penalty: float = setting(
        0.0,
        Role.TRACED,
        "Weight of log R added to the objective, R the effective rank of the gauge-fixed W: negative numbers push the "
        "rank up, positive ones down.",
    )
    penalty_metric: str = setting(
        "",
        Role.STATIC,
        'A geometry metric added to the objective with penalty_weight, as "target/metric" with the target unembedding, '
        'unembedding_gauge_fixed or final_states, such as "final_states/mean_cosine"; "" for none.',
    )
    penalty_weight: float = setting(0.0, Role.TRACED, "Weight of penalty_metric in the objective; 0 for none.")
    polar_decay: float = setting(
        0.0,
        Role.TRACED,
        "Each step subtracts learning rate x this x U V^T from W, with U S V^T its singular value decomposition: the "
        "subgradient of the nuclear norm, which lowers all singular values alike.",
        bound=NOT_NEGATIVE,
    )
    head_decay: float = setting(
        -1.0,
        Role.TRACED,
        "Weight decay of the unembedding; -1: optimizer.weight_decay.",
        bound=_DECAY,
    )
    head_rate: float = setting(
        1.0,
        Role.TRACED,
        "Factor of the unembedding's learning rate, which its weight decay is multiplied by too.",
        bound=NOT_NEGATIVE,
    )
    center_head: bool = setting(
        False,
        Role.TRACED,
        "Each step ends by subtracting the mean row of W, which changes no prediction.",
    )
    mean_row: float = setting(
        0.0,
        Role.TRACED,
        "The placebo: each step ends by setting the mean row of W to one fixed direction, this many times as long as "
        "the rows of the centred W (root mean square). Predictions don't change; raw rank and cosine do. 0: none.",
        bound=NOT_NEGATIVE,
    )

    @property
    def active(self) -> tuple[str, ...]:
        """The names of the interventions that do something."""
        given = {f.name: getattr(self, f.name) != f.default for f in dataclasses.fields(self)}
        return tuple(name for name in KINDS if given[name])

    def check_fields(self, at: str) -> None:
        require(
            bool(self.penalty_metric) or not self.penalty_weight,
            f"{at}.penalty_weight",
            self.penalty_weight,
            f"has no effect without {at}.penalty_metric; name one",
        )
        for one, other, reason in _CONTRADICTIONS:
            if one in self.active and other in self.active:
                raise ConfigError(
                    f"{at}.{one} = {getattr(self, one)!r} and {at}.{other} = {getattr(self, other)!r} contradict each "
                    f"other: {reason}; give each a run of its own"
                )


# The fields that are interventions by themselves; the others specify how one is done.
KINDS = tuple(
    f.name
    for f in dataclasses.fields(InterventionConfig)
    if declared(f).role is Role.TRACED and f.name != "backward_subspace"
)

_CONTRADICTIONS = (
    ("center_head", "mean_row", "one removes the mean row that the other sets"),
    ("head_rank", "mean_row", "a mean row outside the bounded row space would raise the rank"),
    ("head_rank", "update_rank", "the subspace is that of W, and the update that of one of its two factors"),
    ("head_rank", "polar_decay", "the polar factor is subtracted from one matrix, and W is a product of two"),
)


def check_intervention(config: Any, at: str) -> None:
    """Raise ConfigError where a run's interventions don't fit its model, its objective or its origin.

    Args:
      config: the TrainConfig. at: its dotted key.
    """
    arm, width = config.intervention, config.model.d_model
    for name in ("head_rank", *PROJECTED):
        rank = getattr(arm, name)
        require(
            rank <= width, f"{at}.intervention.{name}", rank, f"is more than {at}.model.d_model = {width}; lower it"
        )
    active = arm.active
    if not active:
        return
    first = f"{at}.intervention.{active[0]}"
    value = getattr(arm, active[0])
    require(not config.imported, first, value, "changes training, and an imported run isn't trained; leave it out")
    if config.model.tied:
        moved = [name for name in active if name not in _TIED_TOO]
        require(
            not moved,
            f"{at}.intervention.{(moved or [''])[0]}",
            getattr(arm, moved[0]) if moved else "",
            f"would change the embedding as well, since {at}.model.tied is True; untie it, or leave this out",
        )
    require(
        not (arm.mean_row and config.optimizer.z_loss),
        f"{at}.intervention.mean_row",
        arm.mean_row,
        f"is no placebo with {at}.optimizer.z_loss = {config.optimizer.z_loss}, which penalises what a mean row adds "
        "to all logits; set that to 0",
    )


# Interventions that leave the matrix itself to the optimiser, and so make sense if it is the embedding too.
_TIED_TOO = ("backward_rank", "rank_penalty", "penalty_weight")
