"""What one test found about a metric."""

import dataclasses
import math
from typing import Any

PASS, FAIL, CANT_TELL = "pass", "fail", "can't tell"
# Makes runs enough for every test but that of cause.
SUITE = "olmo-jax run --config=paper:cpu,seeds=5 --workdir=DIR"


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of one test.

    Attributes:
      test: its name. verdict: PASS, FAIL or CANT_TELL.
      number, low, high: what was measured, with its interval; NaN where it couldn't be.
      text: what the number is and what follows from it, in a sentence without a full stop; or why there is no verdict.
      remedy: the command that makes the runs which the test lacks; "" if it lacks none.
    """

    test: str
    verdict: str
    number: float
    low: float
    high: float
    text: str
    remedy: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the finding for JSON; a number that isn't finite is null."""
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in dataclasses.asdict(self).items()
        }


def untold(test: str, why: str, remedy: str = "") -> Finding:
    """Return the finding of a test that couldn't be made."""
    return Finding(test, CANT_TELL, math.nan, math.nan, math.nan, why, remedy)


def by_limit(low: float, high: float, limit: float) -> str:
    """Return PASS if an interval is above a limit, FAIL if it is below, and CANT_TELL if it holds the limit."""
    return PASS if low > limit else FAIL if high < limit else CANT_TELL
