"""Whether checkpoints lie in the order of their steps, judged from a sample of each one's weights.

Weights move along a path, so a checkpoint lies between its neighbours, and going through it is hardly a detour. The
cost of a checkpoint x between a and b is |a - x| + |x - b| - |a - b|, and at an end the distance to its neighbour. If
it costs clearly less at another place, its name and its weights don't belong together.

In its own place, a checkpoint costs nothing if weights drift, and .6 of a step if they diffuse. If they only fluctuate,
all places cost the same, and nothing is concluded.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

# Share that a checkpoint must save elsewhere (Place.saved); of two swapped neighbours that diffuse, each saves .58.
_SAVED = 0.25
# A checkpoint may be this many times farther from its neighbours than they are from each other: fluctuation alone
# gives 1.
_FARTHEST = 3.0
# Of two that save about as much, the one that replaces another is set aside.
_ALIKE = 0.7
_OUTLIER = 6.0  # median absolute deviations
_FEWEST = 4  # checkpoints, of which one can be out of order


@dataclasses.dataclass(frozen=True)
class Place:
    """How well a checkpoint fits where its step puts it.

    Attributes:
      index: of the checkpoint. cost: of its place. best_cost: of the cheapest one.
      between: distance of its neighbours from each other; 0 at an end.
      after, before: the checkpoints that the cheapest place is between; -1 at the beginning, their number at the end.
      is_astray: it is far from both of its neighbours. is_out: whether it doesn't fit.
      to_previous: distance from the one before it; NaN for the first.
    """

    index: int
    cost: float
    best_cost: float
    between: float
    after: int
    before: int
    is_astray: bool = False
    is_out: bool = False
    to_previous: float = float("nan")

    @property
    def saved(self) -> float:
        """Return what the cheapest place would save, as a share of its cost or of the distance that it bridges."""
        scale = max(self.cost, self.between)
        return (self.cost - self.best_cost) / scale if scale > 0 else 0.0


def places(d_TT: np.ndarray) -> list[Place]:
    """Return how well each checkpoint fits, given their distances, in the order of their steps.

    The worst is set aside and the others are judged again, until all of them fit; what was set aside is judged against
    these, as a checkpoint beside a misplaced one seems misplaced too.
    """
    kept = list(range(len(d_TT)))
    aside: list[int] = []
    while len(kept) >= _FEWEST:
        judged = [_judge(d_TT, kept, i) for i in kept]
        saved = np.array([place.saved for place in judged])
        spread = np.median(np.abs(saved - np.median(saved)))
        unfit = [
            place
            for place in judged
            if place.is_astray or place.saved > max(_SAVED, float(np.median(saved) + _OUTLIER * spread))
        ]
        if not unfit:
            break
        most = max(map(_gain, unfit))
        worst = max(unfit, key=lambda place: (_gain(place) > _ALIKE * most, _replaces(place, aside), _gain(place)))
        kept.remove(worst.index)
        aside.append(worst.index)
    judged = [_judge(d_TT, kept, i) for i in range(len(d_TT))]
    out = {i for i in aside if judged[i].is_astray or judged[i].saved > _SAVED}
    # One that belongs on the other side of its neighbour was swapped with it, and either could have been set aside.
    alone = [judged[i] for i in out if not _replaces(judged[i], aside)]
    out |= {p.index + 1 for p in alone if p.after == p.index + 1} | {
        p.index - 1 for p in alone if p.before == p.index - 1
    }
    previous = [np.nan, *(float(d_TT[i, i + 1]) for i in range(len(d_TT) - 1))]
    return [dataclasses.replace(p, is_out=p.index in out, to_previous=previous[p.index]) for p in judged]


def fitting(d_TT: np.ndarray, same: Sequence[int]) -> list[int]:
    """Return those of several checkpoints with the same weights in whose place these fit; all if none can be told.

    `d_TT` are the distances between all checkpoints.
    """
    kept = [i for i in range(len(d_TT)) if i not in same]
    if len(kept) < 2:
        return list(same)
    costs = {i: _judge(d_TT, kept, i).cost for i in same}
    return [i for i in same if costs[i] * (1 - _SAVED) <= min(costs.values())]


def distances(samples_TN: Sequence[np.ndarray]) -> np.ndarray:
    """Return the distance between each two checkpoints, given the same weights of each."""
    x_TN = np.stack(samples_TN).astype(np.float64)
    x_TN -= x_TN.mean(axis=0)
    squares_T = (x_TN**2).sum(axis=1)
    return np.sqrt(np.maximum(squares_T[:, None] + squares_T[None, :] - 2 * x_TN @ x_TN.T, 0))


def _gain(place: Place) -> float:
    return place.cost - place.best_cost + place.is_astray * place.cost


def _replaces(place: Place, aside: Sequence[int]) -> bool:
    """Return whether the cheapest place is one from which another checkpoint was set aside: the two were swapped."""
    return any(place.after < i < place.before for i in aside if i != place.index)


def _judge(d_TT: np.ndarray, kept: Sequence[int], i: int) -> Place:
    """Return how checkpoint i fits between those of `kept`, ascending."""
    others = np.array([k for k in kept if k != i], int)
    if len(others) < 2:
        return Place(i, 0.0, 0.0, 0.0, i - 1, i + 1)
    to, between = d_TT[i, others], d_TT[others[:-1], others[1:]]
    costs = np.concatenate([to[:1], to[:-1] + to[1:] - between, to[-1:]])
    gap, best = int((others < i).sum()), int(costs.argmin())
    bridged = float(between[gap - 1]) if 0 < gap < len(others) else 0.0
    cost, best_cost = float(costs[gap]), float(costs[best])
    after, before = int(others[best - 1]) if best else -1, int(others[best]) if best < len(others) else len(d_TT)
    return Place(i, cost, best_cost, bridged, after, before, bridged > 0 and cost > _FARTHEST * bridged)
