"""Store results in runs/<run>/results/, one JSON file per evaluation and step, written atomically."""

import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from etils import epath

from olmo_jax.columns import Column
from olmo_jax.files import DamagedFileError, read_json, remove_unfinished, write_json


class Evaluation(NamedTuple):
    """One evaluation, independent of the models.

    kind: the evaluator's kind. name: name of its result files and of its columns in the table.
    settings: what its numbers depend on besides the models; a stored result with other settings is recomputed. A new
      setting is omitted at its neutral value (identity.identity_fields), so that stored results stay valid.
    everywhere: by default it runs at every checkpoint, otherwise at a run's last.
    at_the_end: it is defined only for a run's last checkpoint.
    requires: evaluations whose stored results it is computed from; those with `everywhere`, of all of a run's
      checkpoints.
    """

    kind: str
    name: str
    settings: dict[str, Any]
    everywhere: bool = False
    at_the_end: bool = False
    requires: tuple["Evaluation", ...] = ()

    @property
    def required(self) -> set[str]:
        """Return the names of what it requires."""
        return {evaluation.name for evaluation in self.requires}


class Measured(NamedTuple):
    """The result of an evaluation of one model.

    metrics: numbers by name, which become columns of the table; NaN for an undefined one. more: the other entries of
    the file, such as the tokens by domain or the losses by document.
    """

    metrics: dict[str, float]
    more: dict[str, Any]


# Keys of a result file that user-defined evaluators may not use.
RESERVED = {
    "evaluation", "run_id", "step", "settings", "fingerprint", "metrics", "seconds", "documents", "along", "before"
}  # fmt: skip


def write(
    workdir: epath.Path,
    run: str,
    step: int,
    evaluation: Evaluation,
    fingerprint: str,
    measured: Measured,
    seconds: float,
) -> None:
    """Write a result, replacing an earlier one. `seconds` is the time for all models that were measured together."""
    path = path_of(workdir, run, step, evaluation.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "evaluation": evaluation.name,
        "run_id": run,
        "step": step,
        "settings": evaluation.settings,
        "fingerprint": fingerprint,
        "metrics": finite(measured.metrics),
        **finite(measured.more),
        "seconds": round(seconds, 3),
    }
    write_json(path, result)


def declare(workdir: epath.Path, run: str, columns: Iterable[Column]) -> None:
    """Add the columns of a user-defined evaluation to the run's columns.json, for readers without its code.

    The caller must hold the lock of the run's stack.
    """
    known = {column.name: column for column in declared(workdir, run)}
    new = known | {column.name: column for column in columns}
    if new != known:
        entries = {name: {k: v for k, v in vars(column).items() if k != "name"} for name, column in new.items()}
        write_json(_columns_path(workdir, run), entries)


def declared(workdir: epath.Path, run: str) -> list[Column]:
    """Return the columns that `declare` has stored; none from a damaged file."""
    try:
        stored = read_json(_columns_path(workdir, run), "evaluate again")
        return [Column(name=name, **entry) for name, entry in stored.items()]
    except (FileNotFoundError, DamagedFileError, TypeError):
        return []


def _columns_path(workdir: epath.Path, run: str) -> epath.Path:
    return workdir / "runs" / run / "columns.json"


def clean(workdir: epath.Path, run: str) -> None:
    """Remove unfinished files of killed evaluations; the caller must hold the lock of the run's stack."""
    remove_unfinished(_folder(workdir, run))


def read(workdir: epath.Path, run: str, step: int, evaluation: Evaluation) -> dict[str, Any] | None:
    """Return the stored result if it has the evaluation's settings, else None."""
    result = _whole(path_of(workdir, run, step, evaluation.name))
    return result if result is not None and result["settings"] == evaluation.settings else None


def steps(workdir: epath.Path, run: str) -> list[int]:
    """Return the steps of a run that have a result, ascending, including steps without a checkpoint."""
    return sorted({step for _, step in _stored(workdir, run)})


def read_all(workdir: epath.Path, run: str, step: int) -> dict[str, dict[str, Any]]:
    """Return the stored results of a run at a step, by name, sorted; damaged ones are left out."""
    names = [name for name, stored_step in _stored(workdir, run) if stored_step == step]
    stored = {name: _whole(path_of(workdir, run, step, name)) for name in names}
    return {name: result for name, result in stored.items() if result is not None}


def damaged(workdir: epath.Path, run: str) -> list[str]:
    """Return the names of a run's damaged results, at any step."""
    stored = _stored(workdir, run)
    return sorted({name for name, step in stored if _whole(path_of(workdir, run, step, name)) is None})


def _stored(workdir: epath.Path, run: str) -> list[tuple[str, int]]:
    """Return name and step of every result of a run, sorted."""
    folder = _folder(workdir, run)
    files = os.listdir(folder) if folder.is_dir() else []
    return sorted(
        (match[1], int(match[2])) for file in files if (match := re.fullmatch(r"(.+)@(\d{1,12})\.json", file))
    )


def _whole(path: epath.Path) -> dict[str, Any] | None:
    """Return a result; None if it is missing or damaged, and will be computed again."""
    try:
        result = read_json(path, "it is computed again")
    except (FileNotFoundError, DamagedFileError):
        return None
    valid = isinstance(result.get("settings"), dict) and _are_numbers(result.get("metrics"))
    return result if valid and all(is_valid(result[key]) for key, is_valid in _MORE.items() if key in result) else None


def _are_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(v is None or type(v) in (int, float) for v in value.values())


def _are_documents(value: Any) -> bool:
    """Return whether `value` holds, by domain, lists of summed nats and of tokens of the same length."""
    return isinstance(value, dict) and all(
        isinstance(documents, dict)
        and all(
            isinstance(documents.get(key), list) and _are_numbers(dict(enumerate(documents[key])))
            for key in ("nats", "tokens")
        )
        and len(documents["nats"]) == len(documents["tokens"])
        for documents in value.values()
    )


def _are_rows(value: Any) -> bool:
    """Return whether `value` holds measurements taken during a fine-tuning."""
    return isinstance(value, list) and all(
        _are_numbers(row) and all(type(row.get(key)) in (int, float) for key in ("seed", "step")) for row in value
    )


# Checks of the entries of `more` that are read back.
_MORE = {"documents": _are_documents, "along": _are_rows, "before": _are_numbers}


def path_of(workdir: epath.Path, run: str, step: int, name: str) -> epath.Path:
    """Return the path of a result."""
    return _folder(workdir, run) / f"{name}@{step}.json"


def _folder(workdir: epath.Path, run: str) -> epath.Path:
    return workdir / "runs" / run / "results"


def finite(value: Any) -> Any:
    """Return `value` with None for NaN and infinity, which JSON doesn't have."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None
