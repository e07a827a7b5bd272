"""Read evaluation results from disk."""

import json


def stored(workdir, run, evaluation, step=12):
    (path,) = (p for p in (workdir / "runs" / run / "results").iterdir() if p.name == f"{evaluation}@{step}.json")
    return json.loads(path.read_text())


def metrics(workdir, run, evaluation, step=12):
    return stored(workdir, run, evaluation, step)["metrics"]


def task_name(evaluated):
    (name,) = {p.name.split("@")[0] for p in (evaluated / "runs" / "run0" / "results").iterdir()
               if p.name.startswith("task_")}  # fmt: skip
    return name
