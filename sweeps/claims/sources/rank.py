"""Claims about narrow heads, about what moves the unembedding's rank, and what it predicts: by interventions."""

import numpy as np
import pandas as pd

from sweeps.analysis import doses
from sweeps.analysis.contrast import mean_estimate
from sweeps.analysis.estimate import Estimate, NotEstimableError
from sweeps.analysis.r2 import incremental_r2
from sweeps.claims.claim import Claim, need
from sweeps.claims.registry import add
from sweeps.claims.sources.paper_a import AFTER_TUNING, with_outcome
from sweeps.claims.sweep import Sweep
from sweeps.studies.do_rank.effects import has_interventions
from sweeps.studies.paper_a.relations import STATES
from sweeps.table.columns import final_rows

LOSS = "lm_loss/in_domain"
FIXED_RANK = "unembedding_gauge_fixed/effective_rank_percent"
_NATS = 0.01
_CONFIG, _LEAST_TOKENS = "do_rank:cpu", 100_000
_HALF = 0.5  # of the width


class Arm:
    """The change of an outcome by an arm against its control, or against another arm, paired by seeds.

    Args:
      column: the outcome. arm: as in doses.arms_of. share: the arm's dose as a share of the width; None for a dose of
        1 in its own unit. against: the other arm, at the same dose; "" for the control.
    """

    def __init__(self, column: str, arm: str, share: float | None = None, against: str = ""):
        self.column, self.arm, self.share, self.against = column, arm, share, against

    def __call__(self, sweep: Sweep) -> Estimate:
        table = sweep.table
        if not has_interventions(table):
            raise NotEstimableError("no run has an intervention")
        measured = "evaluate it" if self.column == LOSS else "it is measured in training, with config.train.probe"
        need(table, self.column, measured)
        widths = sorted({float(width) for width in table["config.model.d_model"]})
        if len(widths) > 1:
            raise NotEstimableError(f"its runs have widths of {', '.join(f'{w:g}' for w in widths)}; test them apart")
        pairs = doses.pairs(table, self.column, self.column).rows
        change = self._changes(table, pairs, self.arm)
        if self.against:
            change = (change - self._changes(table, pairs, self.against)).dropna()
        if change.empty:
            raise NotEstimableError(f"no run of {self.arm} has a partner of the same seeds")
        return mean_estimate(change.to_numpy())

    def _changes(self, table: pd.DataFrame, pairs: pd.DataFrame, arm: str) -> pd.Series:
        of = pairs[pairs["arm"] == arm]
        if self.share is not None:
            of = of[of["dose"] == round(self.share * float(table["config.model.d_model"].iloc[0]))]
        else:
            of = of[of["dose"] == 1]
        if of.empty:
            known = ", ".join(sorted(set(pairs["arm"])))
            raise NotEstimableError(f"no run of the arm {arm} at this dose; its arms: {known}")
        return of.groupby("seed")["y"].mean()


# Interventions that bound the rank of the head, of what it sends back, or of its updates.
_BOUNDED = ("head_rank", "backward_rank", "update_rank")


def states_after_tuning(sweep: Sweep) -> Estimate:
    """Return the R2 that the rank of the final states adds to the validation loss as predictor after fine-tuning.

    Over configurations in which a rank of the head is bounded, and their control, all else equal.
    """
    rows = final_rows(sweep.table).rows
    if rows.empty or not has_interventions(rows):
        raise NotEstimableError("no finished run has an intervention")
    labels = doses.arms_of(rows)
    usual = labels.loc[labels["arm"] != doses.CONTROL, "settings"].mode().iloc[0]
    bounded = labels["arm"].str.split(" ").str[0].isin((*_BOUNDED, doses.CONTROL))
    rows = rows[bounded & (labels["settings"] == usual)]
    need(rows, LOSS, "evaluate it")
    need(rows, STATES, "it is measured in training, with config.train.probe")
    rows = with_outcome(rows, AFTER_TUNING)
    rows = rows[np.isfinite(rows[[LOSS, STATES, "outcome"]].astype(float)).all(axis=1)]
    found = incremental_r2(rows, STATES, "outcome", [LOSS], "configuration")
    return found._replace(n=int(rows["configuration"].nunique()))


add(
    Claim(
        "narrow-gradient",
        "Murugan, arXiv 2608.16671; Godey and Artzi, arXiv 2603.10145",
        "Handing the trunk a gradient of half the dimensions, with exact logits, raises the loss.",
        _CONFIG, _LEAST_TOKENS, Arm(LOSS, "backward_rank leading", _HALF), 1, _NATS, "nats per token",
    ),
    Claim(
        "narrow-head",
        "Murugan, arXiv 2608.16671",
        "A head of half the rank raises the loss.",
        _CONFIG, _LEAST_TOKENS, Arm(LOSS, "head_rank", _HALF), 1, _NATS, "nats per token",
    ),
    Claim(
        "expressivity",
        "Murugan, arXiv 2608.16671",
        "A head of half the rank costs more than a gradient of half the dimensions: the harm is one of expressivity.",
        _CONFIG, _LEAST_TOKENS, Arm(LOSS, "head_rank", _HALF, "backward_rank leading"), 1, _NATS, "nats per token",
    ),
    Claim(
        "gradient-bottleneck",
        "our reading of Godey and Artzi, arXiv 2603.10145",
        "A gradient of half the dimensions costs more than a head of half the rank: the harm is that of the gradient.",
        _CONFIG, _LEAST_TOKENS, Arm(LOSS, "backward_rank leading", _HALF, "head_rank"), 1, _NATS, "nats per token",
    ),
    Claim(
        "centring",
        "our reading of output-embedding centring, arXiv 2601.02031",
        "Subtracting the unembedding's mean row after each step doesn't change the loss.",
        _CONFIG, _LEAST_TOKENS, Arm(LOSS, "center_head"), 0, _NATS, "nats per token",
    ),
    Claim(
        "low-rank-decay",
        "low-rank decay, arXiv 2606.04405",
        "Decaying all singular values alike lowers the effective rank of the unembedding.",
        _CONFIG, _LEAST_TOKENS, Arm(FIXED_RANK, "polar_decay"), -1, 1.0, "% of D",
    ),
    Claim(
        "states-beyond-loss",
        "our reading of Shivagunde et al., arXiv 2605.13652",
        "Among models trained with a bounded rank, the rank of the states says more about the loss after fine-tuning "
        "than the validation loss alone.",
        _CONFIG, _LEAST_TOKENS, states_after_tuning, 1, 0.02, "of R2",
    ),
)  # fmt: skip
