"""Claims about the end of training: quantisation and forgetting by tokens, decay and sharpness-aware minimisation."""

import pandas as pd

from sweeps.analysis.contrast import contrast
from sweeps.analysis.estimate import Estimate, NotEstimableError
from sweeps.claims.claim import Claim, need
from sweeps.claims.registry import add
from sweeps.claims.sweep import Sweep
from sweeps.studies.anneal.effects import CONSTANT, OTHER, RATE, SAM, SEED, TOKENS, ends, has_branches, has_several

QUANTISED = "gptq_3/relative_rise/in_domain"
FORGETTING = "forgetting"
_RISE = 0.001  # of CE(quantised) / CE - 1
_FORGOTTEN = 0.01  # nats per token
_CONFIG, _LEAST_TOKENS = "anneal:cpu", 100_000


def _rows(table: pd.DataFrame, outcome: str) -> tuple[pd.DataFrame, str]:
    """Return the ends of training and the column of an outcome; forgetting is the mean over all rates and domains."""
    rows = ends(table) if has_branches(table) else pd.DataFrame({"end": []})
    if not has_several(rows):
        raise NotEstimableError("no trunk with a constant rate has branches that end in another way at its budget")
    if outcome != FORGETTING:
        need(rows, outcome, "set config.evaluation.quantize.bits and evaluate again")
        return rows, outcome
    columns = [c for c in map(str, rows.columns) if c.startswith("finetune_") and c.endswith("/forgetting")]
    columns = [c for c in columns if "_best/" not in c and rows[c].notna().any()]
    if not columns:
        raise NotEstimableError("no forgetting was measured: set config.evaluation.finetune.targets and evaluate again")
    return rows.assign(**{FORGETTING: rows[columns].mean(axis=1, skipna=False)}), FORGETTING


def _between(outcome: str, first: str, second: str) -> "Measure":
    return Measure(outcome, "end", (first, second), (TOKENS, RATE))


class Measure:
    """The change of an outcome between two levels of a factor, with seeds as replicates.

    Args:
      outcome: a column, or FORGETTING. levels: two levels, or () for the lowest and the highest.
      only: the kinds of ends that are looked at; () for all.
    """

    def __init__(
        self,
        outcome: str,
        factor: str,
        levels: tuple[str, ...],
        within: tuple[str, ...],
        only: tuple[str, ...] = (),
    ):
        self.outcome, self.factor, self.levels, self.within, self.only = outcome, factor, levels, within, only

    def __call__(self, sweep: Sweep) -> Estimate:
        rows, outcome = _rows(sweep.table, self.outcome)
        if self.only:
            rows = rows[rows["end"].isin(self.only)]
        levels = self.levels or tuple(sorted(rows[self.factor].unique())[:: max(1, rows[self.factor].nunique() - 1)])
        if len(levels) < 2 or not set(levels) <= set(rows[self.factor]):
            lacking = ", ".join(str(level) for level in levels if level not in set(rows[self.factor]))
            raise NotEstimableError(f"no run has {self.factor} = {lacking or 'another value'}")
        return contrast(rows, outcome, self.factor, (levels[0], levels[1]), (*self.within, OTHER), SEED)


_SHORT, _LONG = "decay over the last 10 %", "decay over the last 50 %"

add(
    Claim(
        "decay-quantisation",
        "Catalan-Tatjer et al., arXiv 2510.06213",
        "At equal tokens, decaying the learning rate raises the relative error of quantisation to 3 bits.",
        _CONFIG, _LEAST_TOKENS, _between(QUANTISED, CONSTANT, _LONG), 1, _RISE, "of the loss",
    ),
    Claim(
        "tokens-no-quantisation",
        "Catalan-Tatjer et al., arXiv 2510.06213",
        "At a constant learning rate, more tokens don't change the relative error of quantisation to 3 bits.",
        _CONFIG, _LEAST_TOKENS, Measure(QUANTISED, TOKENS, (), ("end", RATE), (CONSTANT,)), 0, _RISE, "of the loss",
    ),
    Claim(
        "tokens-quantisation",
        "Ouyang et al., arXiv 2411.17691",
        "More tokens raise the relative error of quantisation to 3 bits, with the learning rate decayed.",
        _CONFIG, _LEAST_TOKENS, Measure(QUANTISED, TOKENS, (), ("end", RATE), (_SHORT, _LONG)), 1, _RISE, "of the loss",
    ),
    Claim(
        "tokens-forgetting",
        "Springer et al., arXiv 2503.19206",
        "More tokens of pre-training make fine-tuning forget more.",
        _CONFIG, _LEAST_TOKENS, Measure(FORGETTING, TOKENS, (), ("end", RATE)), 1, _FORGOTTEN, "nats per token",
    ),
    Claim(
        "sam-forgetting",
        "Watts et al., arXiv 2605.02105",
        "Sharpness-aware minimisation while the learning rate decays makes fine-tuning forget less.",
        _CONFIG, _LEAST_TOKENS, _between(FORGETTING, _LONG, _LONG + SAM), -1, _FORGOTTEN, "nats per token",
    ),
    Claim(
        "sam-quantisation",
        "Watts et al., arXiv 2605.02105",
        "Sharpness-aware minimisation while the learning rate decays lowers the relative error of quantisation.",
        _CONFIG, _LEAST_TOKENS, _between(QUANTISED, _LONG, _LONG + SAM), -1, _RISE, "of the loss",
    ),
    Claim(
        "short-decay-forgetting",
        "Watts et al., arXiv 2605.02105",
        "A short decay of the learning rate leads to less forgetting than a long one.",
        _CONFIG, _LEAST_TOKENS, _between(FORGETTING, _LONG, _SHORT), -1, _FORGOTTEN, "nats per token",
    ),
)  # fmt: skip
