"""runs/<run>/results/: a JSON file an evaluation and step, written whole or not at all."""

import json
import math
import urllib.parse
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

from olmo_jax.files import write_json


class Evaluation(NamedTuple):
    """One evaluation, whatever models it is done to.

    kind: how it is done, a key of suite.KINDS. name: of its results' files and of its columns in the table.
    settings: what its numbers depend on beside the models: a stored result with others is done again.
    everywhere: it is done at every checkpoint, unless others are asked for; else at a run's last.
    at_the_end: it says nothing of another checkpoint.
    """

    kind: str
    name: str
    settings: dict[str, Any]
    everywhere: bool = False
    at_the_end: bool = False


class Measured(NamedTuple):
    """What an evaluation says of one model.

    metrics: numbers by name, which become columns of the table; NaN for one that can't be given. more: the rest of the
    file, such as the tokens by domain or the losses by document.
    """

    metrics: dict[str, float]
    more: dict[str, Any]


def file_name(text: str) -> str:
    """Any text as a part of a result's name, which is that of a file."""
    return urllib.parse.quote(text, safe=" +")


def write(
    workdir: epath.Path,
    run: str,
    step: int,
    evaluation: Evaluation,
    fingerprint: str,
    measured: Measured,
    seconds: float,
) -> None:
    """Writes a result, in place of an earlier one. `seconds` is of all models that were measured together."""
    path = path_of(workdir, run, step, evaluation.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {
        "evaluation": evaluation.name,
        "run_id": run,
        "step": step,
        "settings": evaluation.settings,
        "fingerprint": fingerprint,
        "metrics": finite(measured.metrics),
        **finite(measured.more),
        "seconds": round(seconds, 3),
    }
    write_json(path, told)


def read(workdir: epath.Path, run: str, step: int, evaluation: Evaluation) -> dict[str, Any] | None:
    """A stored result that was made with the evaluation's settings, else None."""
    path = path_of(workdir, run, step, evaluation.name)
    if not path.exists():
        return None
    result = json.loads(path.read_text())
    return result if result["settings"] == evaluation.settings else None


def steps(workdir: epath.Path, run: str) -> list[int]:
    """Steps of a run that have a result, ascending, whether or not their checkpoints are still there."""
    folder = workdir / "runs" / run / "results"
    files = folder.glob("*@*.json") if folder.exists() else []
    return sorted({int(path.stem.rsplit("@", 1)[1]) for path in files})


def read_all(workdir: epath.Path, run: str, step: int) -> dict[str, dict[str, Any]]:
    """Every stored result of a run at a step, by name, sorted."""
    folder = workdir / "runs" / run / "results"
    files = sorted(folder.glob(f"*@{step}.json")) if folder.exists() else []
    return {path.name.rsplit("@", 1)[0]: json.loads(path.read_text()) for path in files}


def path_of(workdir: epath.Path, run: str, step: int, name: str) -> epath.Path:
    """Where a result lies."""
    return workdir / "runs" / run / "results" / f"{name}@{step}.json"


def finite(value: Any) -> Any:
    """The same with None for numbers that JSON can't say."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None
