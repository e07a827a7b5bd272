"""What is wrong with a history, found without fetching it: `olmo-jax audit`.

Of each checkpoint are read: the list of its files with their hashes, the headers of its .safetensors files, and a few
rows of one matrix.
"""

import collections
import dataclasses
import math
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from geometry.spectrum import effective_rank, singular_values
from olmo_jax.console import progress
from olmo_jax.hf import hub
from olmo_jax.hf.hub import File
from olmo_jax.storage.safetensors import HeaderError, Stored
from sweeps.histories.gaps import missing
from sweeps.histories.history import INDEX, Checkpoint, History
from sweeps.histories.order import distances, fitting, places

OK, DUPLICATE, TRUNCATED, OUT_OF_ORDER, NOT_FINITE = "ok", "duplicate", "truncated", "out_of_order", "not_finite"

# Bytes of a checkpoint's sample: a share of its weights, within bounds. The rows of a sample of 4 KB already tell
# neighbours from each other.
_SHARE = 0.004
_LEAST, _MOST = 4096, 1 << 18
_SMALLEST_PICKLE = 0.9  # of the median size
_REAL = ("float64", "float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was found of one checkpoint.

    Attributes:
      verdict: OK, or what is wrong. detail: one sentence on it; "" if there is nothing to say.
      norm, effective_rank: Frobenius norm and effective rank of the sample; None without one.
      to_previous: distance of the samples from the checkpoint before it.
    """

    revision: str
    step: int
    verdict: str
    detail: str
    stage: str | None = None
    seed: str | None = None
    norm: float | None = None
    effective_rank: float | None = None
    to_previous: float | None = None


@dataclasses.dataclass(frozen=True)
class Audit:
    """The findings on a history, in its order.

    Attributes:
      missing: steps that the pattern of the others suggests, by training (stage and seed, or "").
      sampled: which weights were read of each checkpoint; "" if none could be.
      unnamed: revisions whose names give no step, which weren't looked at.
      bytes_read: of files of weights and their indexes. bytes: of all checkpoints' weights.
    """

    source: str
    findings: tuple[Finding, ...]
    missing: dict[str, list[int]]
    sampled: str
    bytes_read: int
    bytes: int
    unnamed: tuple[str, ...] = ()

    @property
    def at_fault(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.verdict != OK]

    @property
    def is_clean(self) -> bool:
        return not self.at_fault and not any(self.missing.values())

    def as_json(self) -> dict[str, Any]:
        """Return what `audit --json` prints."""
        return {
            "source": self.source,
            "revisions": [
                {key: value for key, value in dataclasses.asdict(finding).items() if key not in _OPTIONAL or value}
                for finding in self.findings
            ],
            "missing": sorted({step for steps in self.missing.values() for step in steps}),
            "unnamed": list(self.unnamed),
            "sampled": self.sampled,
            "bytes_read": self.bytes_read,
            "bytes": self.bytes,
        }


_OPTIONAL = ("stage", "seed")


def audit(history: History) -> Audit:
    """Return what is wrong with a history. Raises HubError and WeightsError for one that can't be read."""
    findings: list[Finding] = []
    lacking: dict[str, list[int]] = {}
    sampled = ""
    before = history.repository.traffic.bytes if history.repository else 0
    for training in history.trainings():
        looks = list(_look_at(history.source, training))
        findings += _judge(looks)
        sampled = sampled or next((look.sampled for look in looks if look.sampled), "")
        if steps := missing(sorted({checkpoint.step for checkpoint in training})):
            said = training[0].said
            lacking[" ".join(filter(None, (said.stage, said.seed and f"seed {said.seed}")))] = steps
    total = sum(checkpoint.weights_bytes for checkpoint in history.checkpoints)
    # The files of a folder were read for their hashes.
    bytes_read = history.repository.traffic.bytes - before if history.repository else total
    return Audit(history.source, tuple(findings), lacking, sampled, bytes_read, total, history.unnamed)


@dataclasses.dataclass(frozen=True)
class _Look:
    """A checkpoint, why it can't be whole ("" if it can), and a sample of its weights.

    sampled: name of the sample's tensor. header_length: of its first file, which others of the history may share.
    """

    checkpoint: Checkpoint
    problem: str = ""
    sample: np.ndarray | None = None
    sampled: str = ""
    header_length: int = 0


def _look_at(source: str, training: Sequence[Checkpoint]) -> Iterator[_Look]:
    """Yield a look at each checkpoint; the first one that is whole decides what is sampled."""
    pickles = [sum(file.size for file in c.pickles) for c in training if c.pickles and not c.safetensors]
    usual = statistics.median(pickles) if pickles else 0.0
    with progress(f"audit {source}", len(training)) as show:
        first, left = _Look(training[0]), list(training)
        done = 0
        # One at a time, until the length of headers and the matrix to sample are known.
        while left and not first.sampled:
            first = _look(left.pop(0), first, usual)
            done += 1
            show(done, first.checkpoint.name)
            yield first
        for look in hub.in_parallel(lambda checkpoint: _look(checkpoint, first, usual), left):
            done += 1
            show(done, look.checkpoint.name)
            yield look


def _look(checkpoint: Checkpoint, like: _Look, usual: float) -> _Look:
    """Return a look at a checkpoint, of which the same is sampled as of `like`. `usual`: size of the pickles."""
    if not checkpoint.safetensors:
        return _Look(checkpoint, _problem_of_pickles(checkpoint, usual))
    stored: dict[str, tuple[File, Stored]] = {}
    length = 0
    file = checkpoint.file(INDEX) or checkpoint.safetensors[0]
    try:
        weight_map = checkpoint.weight_map
        for file in checkpoint.safetensors:
            if file.size < 0:
                return _Look(checkpoint, f"lacks {file.path}, which its index names")
            header = checkpoint.header(file, like.header_length)
            if file.size < header.size:
                return _Look(checkpoint, f"{file.path} has {file.size:,} of its {header.size:,} bytes")
            stored |= {name: (file, tensor) for name, tensor in header.tensors.items()}
            length = length or header.length
        if lost := sorted(weight_map.keys() - stored.keys()):
            return _Look(checkpoint, f"lacks {lost[0]}, which its index names")
        name = like.sampled or _to_sample(tensor for _, tensor in stored.values())
        if name not in stored:
            return _Look(checkpoint)
        file, tensor = stored[name]
        sample = tensor.read(checkpoint.reader(file), _rows(tensor, checkpoint.weights_bytes))
        return _Look(checkpoint, "", sample.astype(np.float32), name, length)
    except HeaderError as error:
        return _Look(checkpoint, f"{file.path} {error}")


def _problem_of_pickles(checkpoint: Checkpoint, usual: float) -> str:
    if not checkpoint.pickles:
        return "has no weights"
    size = sum(file.size for file in checkpoint.pickles)
    if size < _SMALLEST_PICKLE * usual:
        return f"{checkpoint.pickles[0].path} has {size:,} bytes, and those of most others {usual:,.0f}"
    return ""


def _to_sample(tensors: Iterable[Stored]) -> str:
    """Return the name of the largest matrix of the middle block, or of all if no name has a number; "" without one."""
    matrices = [t for t in tensors if len(t.shape) == 2 and 0 not in t.shape and t.dtype in _REAL]
    blocks = collections.defaultdict(list)
    for tensor in matrices:
        if number := re.search(r"\.(\d+)\.", tensor.name):
            blocks[int(number[1])].append(tensor)
    if blocks:
        matrices = blocks[sorted(blocks)[len(blocks) // 2]]
    return max(matrices, key=lambda t: (math.prod(t.shape), t.name)).name if matrices else ""


def _rows(tensor: Stored, weights_bytes: int) -> int:
    row_bytes = (tensor.stop - tensor.start) // tensor.shape[0]
    return max(1, round(min(max(_SHARE * weights_bytes, _LEAST), _MOST)) // row_bytes)


def _judge(looks: Sequence[_Look]) -> list[Finding]:
    """Return the findings on one training's checkpoints, in order."""
    verdicts: dict[int, tuple[str, str]] = {}
    for i, look in enumerate(looks):
        if look.problem:
            verdicts[i] = TRUNCATED, look.problem
        elif look.sample is not None and not np.isfinite(look.sample).all():
            verdicts[i] = NOT_FINITE, f"{look.sampled} isn't finite"
    shapes = collections.Counter(
        look.sample.shape for i, look in enumerate(looks) if i not in verdicts and look.sample is not None
    )
    usual = shapes.most_common(1)[0][0] if shapes else None
    sampled = [
        i
        for i, look in enumerate(looks)
        if i not in verdicts and look.sample is not None and look.sample.shape == usual
    ]
    d_TT = distances([_flat(looks[i]) for i in sampled]) if sampled else np.zeros((0, 0))
    for group in _same_weights([i for i in range(len(looks)) if i not in verdicts], looks):
        for i, original in _copies(group, len(looks) - 1, sampled, d_TT).items():
            verdicts[i] = DUPLICATE, f"has the same files of weights as {looks[original].checkpoint.name}"
    in_order = [k for k, i in enumerate(sampled) if i not in verdicts]
    placed = {sampled[k]: place for k, place in zip(in_order, places(d_TT[np.ix_(in_order, in_order)]), strict=True)}
    names = [looks[sampled[k]].checkpoint.name for k in in_order]
    for i, place in placed.items():
        if place.is_out:
            verdicts[i] = OUT_OF_ORDER, _where(place.is_astray, place.after, names)
    return [
        _finding(
            look, *verdicts.get(i, (OK, _note(look, i in placed))), placed[i].to_previous if i in placed else math.nan
        )
        for i, look in enumerate(looks)
    ]


def _same_weights(whole: Sequence[int], looks: Sequence[_Look]) -> list[list[int]]:
    """Return the groups of checkpoints with the same files of weights."""
    groups: dict[Any, list[int]] = collections.defaultdict(list)
    for i in whole:
        checkpoint = looks[i].checkpoint
        groups[tuple(file.digest for file in checkpoint.safetensors or checkpoint.pickles)].append(i)
    return [group for group in groups.values() if len(group) > 1]


def _copies(group: Sequence[int], last: int, sampled: Sequence[int], d_TT: np.ndarray) -> dict[int, int]:
    """Return which of several checkpoints with the same weights are copies, each with the one that they belong to.

    They belong where they fit best. If that can't be told, they are those of the last step of the history, which is
    what some repositories serve in place of others, or else those of the first of the group.
    """
    candidates = list(group)
    if {*group} <= {*sampled}:
        candidates = [sampled[k] for k in fitting(d_TT, [sampled.index(i) for i in group])]
    original = last if last in candidates else candidates[0]
    return {i: original for i in group if i != original}


def _where(is_astray: bool, after: int, names: Sequence[str]) -> str:
    if is_astray and after == len(names) - 1:
        return "is far from all others"
    where = f"after {names[after]}" if after >= 0 else f"before {names[0]}"
    return f"its weights belong {where}"


def _note(look: _Look, is_placed: bool) -> str:
    if not look.checkpoint.safetensors:
        return "has only pickles, of which nothing but the hashes was compared"
    return "" if is_placed else "nothing but the hashes and headers was compared"


def _flat(look: _Look) -> np.ndarray:
    assert look.sample is not None
    return look.sample.ravel()


def _finding(look: _Look, verdict: str, detail: str, to_previous: float) -> Finding:
    checkpoint = look.checkpoint
    norm: float | None = None
    rank: float | None = None
    if look.sample is not None and verdict != NOT_FINITE:
        norm = float(np.linalg.norm(look.sample))
        rank = float(effective_rank(singular_values(look.sample, method="svd")))
        rank = rank if math.isfinite(rank) else None  # of zeros
    return Finding(
        checkpoint.name,
        checkpoint.step,
        verdict,
        detail,
        checkpoint.said.stage,
        checkpoint.said.seed,
        norm,
        rank,
        None if math.isnan(to_previous) else to_previous,
    )
