"""runs/<run>/results/: one JSON file per evaluation and step, written whole or not at all."""

import math
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

from olmo_jax.files import DamagedFileError, read_json, remove_unfinished, write_json


class Evaluation(NamedTuple):
    """One evaluation, whatever models it is done to.

    kind: how it is done, a key of suite.KINDS. name: of its results' files and of its columns in the table.
    settings: what its numbers depend on beside the models: a stored result with others is done again. One that is added
      later is left out where it does nothing (identity.identity_fields), or all that is stored would be done again.
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


def clean(workdir: epath.Path, run: str) -> None:
    """Removes what killed evaluations left half-written; for whoever holds the lock of the run's stack."""
    remove_unfinished(_folder(workdir, run))


def read(workdir: epath.Path, run: str, step: int, evaluation: Evaluation) -> dict[str, Any] | None:
    """A stored result that was made with the evaluation's settings, else None."""
    result = _whole(path_of(workdir, run, step, evaluation.name))
    return result if result is not None and result["settings"] == evaluation.settings else None


def steps(workdir: epath.Path, run: str) -> list[int]:
    """Steps of a run that have a result, ascending, whether or not their checkpoints are still there."""
    return sorted({step for _, step in _stored(workdir, run)})


def read_all(workdir: epath.Path, run: str, step: int) -> dict[str, dict[str, Any]]:
    """Every stored result of a run at a step, by name, sorted; those that are damaged are left out."""
    found = {name: _whole(path_of(workdir, run, step, name)) for name, at in _stored(workdir, run) if at == step}
    return {name: result for name, result in found.items() if result is not None}


def damaged(workdir: epath.Path, run: str) -> list[str]:
    """Names of a run's results that are there and damaged, at any step."""
    stored = _stored(workdir, run)
    return sorted({name for name, step in stored if _whole(path_of(workdir, run, step, name)) is None})


def _stored(workdir: epath.Path, run: str) -> list[tuple[str, int]]:
    """Name and step of every result of a run, sorted."""
    folder = _folder(workdir, run)
    files = os.listdir(folder) if folder.is_dir() else []
    return sorted((of[1], int(of[2])) for file in files if (of := re.fullmatch(r"(.+)@(\d{1,12})\.json", file)))


def _whole(path: epath.Path) -> dict[str, Any] | None:
    """A result; None where there is none, or one that isn't what was written, which is then made anew."""
    try:
        result = read_json(path, "it is made anew")
    except (FileNotFoundError, DamagedFileError):
        return None
    needed = isinstance(result.get("settings"), dict) and _are_numbers(result.get("metrics"))
    return result if needed and all(of(result[key]) for key, of in _MORE.items() if key in result) else None


def _are_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(v is None or type(v) in (int, float) for v in value.values())


def _are_documents(value: Any) -> bool:
    """By domain lists of summed nats and of tokens, of one length."""
    return isinstance(value, dict) and all(
        isinstance(of, dict)
        and all(isinstance(of.get(key), list) and _are_numbers(dict(enumerate(of[key]))) for key in ("nats", "tokens"))
        and len(of["nats"]) == len(of["tokens"])
        for of in value.values()
    )


def _are_rows(value: Any) -> bool:
    """Measurements along a fine-tuning."""
    return isinstance(value, list) and all(
        _are_numbers(row) and all(type(row.get(key)) in (int, float) for key in ("seed", "step")) for row in value
    )


# What of some results is read again, and how it is known to be whole.
_MORE = {"documents": _are_documents, "along": _are_rows, "before": _are_numbers}


def path_of(workdir: epath.Path, run: str, step: int, name: str) -> epath.Path:
    """Where a result lies."""
    return _folder(workdir, run) / f"{name}@{step}.json"


def _folder(workdir: epath.Path, run: str) -> epath.Path:
    return workdir / "runs" / run / "results"


def finite(value: Any) -> Any:
    """The same with None for numbers that JSON can't say."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None
