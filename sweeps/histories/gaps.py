"""Steps that a history lacks, judged by the spacing of those around them."""

import statistics
from collections.abc import Sequence

_NEIGHBOURS = 3
_MOST_MISSING = 1000  # of one gap; a longer one is a change of plan rather than lost checkpoints


def missing(steps: Sequence[int]) -> list[int]:
    """Return the steps missing from a history whose steps are ascending and distinct.

    A gap counts if it is a multiple of the spacing that prevails both before and after it, in steps or, for steps that
    double, in factors. Where the spacing changes for good, as from powers of two to every thousandth step, nothing is
    missing.
    """
    positive = [step for step in steps if step > 0]
    gaps = [after - before for before, after in zip(steps, steps[1:], strict=False)]
    factors = [after / before for before, after in zip(positive, positive[1:], strict=False)]
    lacking = set()
    for i, gap in enumerate(gaps):
        spacing = _prevailing(gaps, i)
        if spacing and gap % spacing == 0 and 1 < gap // spacing <= _MOST_MISSING:
            lacking |= {*range(steps[i] + int(spacing), steps[i + 1], int(spacing))}
    for i, factor in enumerate(factors):
        spacing = _prevailing(factors, i)
        if spacing and spacing == int(spacing) > 1:
            step, end = positive[i] * int(spacing), positive[i + 1]
            between = []
            while step < end:
                between.append(step)
                step *= int(spacing)
            if between and step == end and factor > spacing:
                lacking |= {*between}
    return sorted(lacking)


def _prevailing(gaps: Sequence[float], i: int) -> float:
    """Return the gap that is typical both before and after gap i, or 0 if there is none.

    On each side the next gap counts, or the median of the next three. At an end there is one side, whose gaps must
    then be equal.
    """
    before, after = gaps[max(i - _NEIGHBOURS, 0) : i], gaps[i + 1 : i + 1 + _NEIGHBOURS]
    if not before or not after:
        side = before or after
        return side[0] if len(side) == _NEIGHBOURS and len({*side}) == 1 else 0
    common = {before[-1], statistics.median_low(before)} & {after[0], statistics.median_low(after)}
    return min(common, default=0)
