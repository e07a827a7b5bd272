"""Published checkpoints as a run of a working directory, with a history where there are several: `olmo-jax import`."""

import collections
import dataclasses
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from eval.config import EvalConfig
from olmo_jax import cohort as cohorts
from olmo_jax import hf
from olmo_jax.checkpoint import check_place, directory, open_checkpoints
from olmo_jax.cohort import Cohort, Run
from olmo_jax.config import ConfigError, ModelConfig, TrainConfig, from_config_dict, require
from olmo_jax.config.identity import run_id
from olmo_jax.console import progress, say
from olmo_jax.data.prepare import prepare
from olmo_jax.execution.sharding import path_name
from olmo_jax.files import DamagedFileError, read_json, write_json, write_whole
from olmo_jax.hf.settings import TOKENIZER, check_tokenizer, eos_of, read_config
from olmo_jax.logs.metrics import METRICS, read_jsonl, write_jsonl
from olmo_jax.probes.geometry import Probe, check_probe
from olmo_jax.probes.texts import check_texts
from olmo_jax.step import member_structs
from olmo_jax.storage.lock import exclusive_lock
from olmo_jax.storage.names import LONGEST_BEGINNING
from olmo_jax.train import check_vocabulary, cohort_probes, write_run_files
from olmo_jax.weights import WeightsError, at
from sweeps.planning import plan as plans
from sweeps.planning import record as records
from sweeps.planning.plan import Plan
from sweeps.planning.versions import versions
from sweeps.running.stages import data_root

# step3000, step3000-tokens12B, stage1-step3000-tokens12B, stage2-ingredient1-step3000-tokens12B, step3000-unsharded
_REVISION = re.compile(
    r"(?:(stage\d+(?:-ingredient\d+)?)-)?step(\d+)(?:-tokens(\d+(?:\.\d+)?)([KMBT]?))?(?:-unsharded|-hf)?"
)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
# Where the run came from: the folder, and by step the revision and a hash of its parameters.
ORIGIN = "imported.json"


class Revision(NamedTuple):
    """A folder with one checkpoint, its step, and what its name tells beside: tokens seen by then, stage."""

    step: int
    tokens: int | None
    stage: str | None
    folder: epath.Path


def import_run(
    workdir: epath.Path,
    path: epath.PathLike,
    config: ConfigDict,
    name: str | None = None,
    step: int | None = None,
    keep_evaluation: bool = False,
) -> str:
    """Makes a run of what lies at `path`: checkpoints, and the probe's metrics at each. What is there already is kept.

    Everything that can be refused without reading weights is refused before a run is begun.

    Args:
      workdir: a new directory, or one of imported runs.
      path: a Hugging Face folder, or a folder of such, named by their steps (`revisions`).
      config: text, probes and evaluations (sweeps/configs/imported.py).
      name: of the run; the folder's by default. step: of a single checkpoint; told by its name, or 1.
      keep_evaluation: of a directory that has runs already; else the evaluations of all become those of `config`.

    Returns:
      The run's id.

    Raises:
      WeightsError, ConfigError, DataError: what `hf.import_checkpoint`, configurations and `prepare` raise, and what
        doesn't fit together.
    """
    source = at(path).absolute()
    found = revisions(at(path), step)
    check_place(workdir)
    _check_directory(workdir)
    for revision in found:
        hf.check_checkpoint(revision.folder)
    train, evaluation = _configure(workdir, config, found, name or source.name)
    index = prepare(train.data, data_root(workdir, train), say)
    check_vocabulary(train.model.vocab_size, index)
    id_ = run_id(train, index.fingerprint)
    place = workdir / "runs" / id_
    with exclusive_lock(Path(workdir / ".sweep.lock"), say):
        origin: dict[str, Any] = {"source": str(source), "revisions": {}}
        if (place / ORIGIN).exists():
            origin = _origin(place / ORIGIN)
        if origin["source"] != str(source):
            raise ConfigError(f"{id_} was imported from {origin['source']}; give this one another --name")
        last = max(found[-1].step, *map(int, origin["revisions"]), 0)
        train = dataclasses.replace(train, tokens=last * train.tokens_per_step)
        cohort = _in_its_place(workdir, Cohort(cohorts.shape_of(train, index.fingerprint), (Run(id_, train),)))
        check_probe(train.probe, member_structs(cohort.shape).params)
        check_texts(train.probe.texts, train.model)
        probes = cohort_probes(cohort, index)
        plan = _joined(workdir, cohort, index.fingerprint, evaluation, keep_evaluation)
        write_run_files(workdir, cohort, anew=True)
        write_json(workdir / "sweep.json", records.record(plan, versions()))
        _import_revisions(workdir, cohort, probes, found, origin)
    return id_


def _origin(path: epath.Path) -> dict[str, Any]:
    remedy = "put it back from a copy, or import under another --name"
    origin = read_json(path, remedy)
    steps = origin.get("revisions")
    if not (isinstance(origin.get("source"), str) and isinstance(steps, dict) and all(map(str.isdecimal, steps))):
        raise DamagedFileError(f"{path}: isn't what an import writes; {remedy}")
    return origin


def revisions(path: epath.Path, step: int | None = None) -> list[Revision]:
    """The checkpoints at a path, by step: the folder itself, or those in it that are named like step3000 or
    step3000-tokens12B, whose other folders are told on stderr.

    Raises:
      WeightsError: none there, two of one step, or of several stages of training, each of which counts from 0.
      ConfigError: a negative step, one for a folder of revisions, or none for a folder whose name hides one.
    """
    if not path.is_dir():
        what = "is a file; give the folder that it lies in" if path.exists() else "no such folder; download one"
        raise WeightsError(f"{path}: {what}, with config.json and .safetensors, or several below a folder")
    require(step is None or step >= 0, "--step", step, "needs a number of 0 or more")
    if _is_model(path):
        return [_single(path.absolute(), step)]
    if step is not None:
        raise ConfigError(f"--step={step}: {path} is a folder of revisions, whose names tell their steps; leave it out")
    folders = sorted(folder for folder in path.iterdir() if _is_model(folder))
    found = [revision for folder in folders if (revision := _told(folder)) is not None]
    if not found:
        raise WeightsError(
            f"{path}: neither a model (config.json) nor a folder of revisions named like step3000 or step3000-tokens12B"
        )
    if left := [folder.name for folder in folders if _told(folder) is None]:
        say(f"{path}: left out, for their names tell no step: {', '.join(left)}")
    if len(stages := {revision.stage for revision in found}) > 1:
        names = ", ".join(sorted(str(stage) for stage in stages))
        raise WeightsError(f"{path}: has revisions of several stages ({names}); import each from a folder of its own")
    found.sort(key=lambda revision: revision.step)
    for one, following in zip(found, found[1:], strict=False):
        if one.step == following.step:
            raise WeightsError(f"{path}: {one.folder.name} and {following.folder.name} are of one step; move one away")
    return found


def _is_model(folder: epath.Path) -> bool:
    return folder.is_dir() and any((folder / file).exists() for file in ("config.json", "config.yaml"))


def _told(folder: epath.Path) -> Revision | None:
    """What a revision's name tells; None where it tells no step."""
    name = re.fullmatch(_REVISION, folder.name)
    if name is None:
        return None
    tokens = round(float(name[3]) * _UNITS[name[4]]) if name[3] else None
    return Revision(int(name[2]), tokens, name[1], folder)


def _single(folder: epath.Path, step: int | None) -> Revision:
    told = _told(folder)
    if told is not None:
        return told if step is None else told._replace(step=step)
    if step is None and re.search(r"step\d", folder.name):
        raise ConfigError(f"{folder}: its name tells a step in a way that isn't known; say it by --step")
    return Revision(1 if step is None else step, None, None, folder)


def _configure(
    workdir: epath.Path, config: ConfigDict, found: Sequence[Revision], name: str
) -> tuple[TrainConfig, EvalConfig]:
    """The run's configuration: the model's own from its folder, the rest from `config`."""
    sweep = plans.read_sweep(config)
    values = sweep.train.to_dict()
    data = values["data"]
    tokenizer, eos_token = _tokenizer(data, found)
    architecture, model = _one_model(found, tokenizer)
    check_tokenizer(tokenizer, model.vocab_size, eos_token)
    kept = _keep(workdir, tokenizer)
    data |= {"tokenizer": str(kept), "eos_token": eos_token, "name": f"{data['name']}-{kept.stem}"}
    data["sequence_length"] = min(data["sequence_length"], model.context_length)
    values |= {
        "name": _plain(name),
        "imported": architecture,
        "model": dataclasses.asdict(model),
        "tokens": found[-1].step * data["batch_size"] * data["sequence_length"],
        "checkpoint": {},
    }
    return from_config_dict(TrainConfig, values, "config.train"), sweep.evaluation


def _plain(name: str) -> str:
    """A name as a run's, without what file names can't hold; where its id would be too long for one, its beginning."""
    plain = re.sub(r"[^\w.-]", "_", name).lstrip(".").encode()
    if len(plain) <= LONGEST_BEGINNING:
        return plain.decode()
    return f"{plain[: LONGEST_BEGINNING - 9].decode(errors='ignore')}-{hashlib.sha256(plain).hexdigest()[:8]}"


def _tokenizer(data: dict[str, Any], found: Sequence[Revision]) -> tuple[epath.Path, str]:
    """The tokenizer.json that the configuration names, or else that of any revision or of the folder they lie in."""
    if data["tokenizer"] != "bpe":
        file = at(data["tokenizer"])
        if not file.is_file():
            what = "is a folder" if file.exists() else "no such file"
            remedy = f"{what}; name the tokenizer.json that the model was trained with"
            raise ConfigError(f"config.train.data.tokenizer = {data['tokenizer']!r}: {remedy}")
        return file, data["eos_token"]
    folders = [revision.folder for revision in found]
    for folder in (*folders, *([folders[0].parent] if len(folders) > 1 else ())):
        if (folder / TOKENIZER).exists():
            return folder / TOKENIZER, eos_of(folders[-1], folder / TOKENIZER)
    raise ConfigError(
        f"{folders[0]}: has no {TOKENIZER}, and no text can be read without; put it there, or name one in "
        "--config.train.data.tokenizer (olmo-jax geometry needs none)"
    )


def _one_model(found: Iterable[Revision], tokenizer: epath.Path) -> tuple[str, ModelConfig]:
    """Architecture and configuration that all revisions share."""
    read = {revision.folder: read_config(revision.folder, tokenizer) for revision in found}
    first, (family, config) = next(iter(read.items()))
    for folder, (other_family, other) in read.items():
        if (other_family, other) != (family, config):
            raise ConfigError(f"{folder} is another model than {first} by its config.json; import them apart")
    return family.architecture, config


def _keep(workdir: epath.Path, tokenizer: epath.Path) -> epath.Path:
    """A copy in the working directory, which then needs the imported folder no more, named by its hash."""
    content = tokenizer.read_bytes()
    kept = workdir / "tokenizers" / f"{hashlib.sha256(content).hexdigest()[:8]}.json"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, content)
    return kept


def _check_directory(workdir: epath.Path) -> None:
    """Raises ConfigError for a directory of runs that were trained, or that no sweep.json tells of."""
    if not (workdir / "sweep.json").exists():
        if (workdir / "cohorts").exists():
            raise ConfigError(f"{workdir} has runs but no sweep.json; put it back, or choose another --workdir")
        return
    if trained := [run.id for run in records.recorded_plan(workdir).runs if not run.config.imported]:
        raise ConfigError(f"{workdir} holds runs that were trained ({trained[0]}); import into a --workdir of its own")


def _in_its_place(workdir: epath.Path, cohort: Cohort) -> Cohort:
    """The cohort of one imported run with the part that it has, or gets beside others of its shape, in the directory.

    Raises ConfigError if the run is there with other probes.
    """
    if not (workdir / "sweep.json").exists():
        return cohort
    (run,) = cohort.runs
    stacks = records.recorded_plan(workdir).stacks
    for stack in stacks:
        if run.id == stack.runs[0].id:
            if stack.shape.config.probe != cohort.shape.config.probe:
                raise ConfigError(
                    f"{run.id} was imported with other probes; set config.train.probe back, or choose another --name"
                )
            return dataclasses.replace(cohort, part=stack.part)
    return dataclasses.replace(cohort, part=sum(stack.id == cohort.id for stack in stacks))


def _joined(
    workdir: epath.Path, cohort: Cohort, fingerprint: str, evaluation: EvalConfig, keep_evaluation: bool
) -> Plan:
    """The plan of the directory's other runs and this one."""
    data = {cohort.shape.data_name: fingerprint}
    if not (workdir / "sweep.json").exists():
        return Plan((cohort,), data, evaluation, stacks=(cohort,))
    old = records.recorded_plan(workdir)
    if not keep_evaluation and evaluation != old.evaluation:
        say(f"{workdir}: its runs are evaluated anew, by this configuration's evaluations")
    stacks = {stack.folder: stack for stack in old.stacks} | {cohort.folder: cohort}
    runs: dict[str, list[Run]] = collections.defaultdict(list)
    for stack in stacks.values():
        runs[stack.id] += stack.runs
    shapes = {stack.id: stack.shape for stack in stacks.values()}
    return Plan(
        tuple(Cohort(shapes[name], tuple(members), recorded_id=name) for name, members in runs.items()),
        old.fingerprints | data,
        old.evaluation if keep_evaluation else evaluation,
        stacks=tuple(stacks.values()),
    )


def _import_revisions(
    workdir: epath.Path, cohort: Cohort, probes: dict[int, Probe], found: Sequence[Revision], origin: dict[str, Any]
) -> None:
    """Checkpoint and metrics of each revision that isn't there yet."""
    (run,) = cohort.runs
    place = workdir / "runs" / run.id
    with open_checkpoints(directory(workdir, cohort.folder)) as checkpoints:
        there = set(checkpoints.steps())
        rows = {row["step"]: row for row in read_jsonl(place / METRICS) if row["step"] in there}
        with progress(f"import {run.id}", len(found), len(there)) as show:
            for revision in found:
                if revision.step in there:
                    continue
                _, params = hf.import_checkpoint(revision.folder)
                if bad := [path_name(p) for p, x in jax.tree_util.tree_leaves_with_path(params) if not _finite(x)]:
                    say(f"{revision.folder}: {', '.join(bad[:3])} isn't finite; its metrics and losses will be missing")
                params_M = jax.tree.map(lambda x: jnp.asarray(x)[None], params)
                row: dict[str, Any] = {"step": revision.step, "tokens": revision.tokens}
                for probe in probes.values():
                    row |= {name: float(str(x_M[0])) for name, x_M in jax.device_get(probe(params_M)).items()}
                rows[revision.step] = row
                # In this order: the checkpoint, which says that a step is done, comes last.
                origin["revisions"][str(revision.step)] = {"name": revision.folder.name, "sha256": _sha256(params)}
                write_json(place / ORIGIN, origin)
                write_jsonl(place / METRICS, [rows[step] for step in sorted(rows)])
                checkpoints.save_params(revision.step, params_M, [run.id])
                there.add(revision.step)
                show(len(there), revision.folder.name)
    last = max(there)
    status = {"state": "done", "step": last, "total_steps": run.config.total_steps}
    write_json(place / "status.json", status | {"diverged_at": None, "reason": ""})


def _finite(x: np.ndarray) -> bool:
    return bool(np.isfinite(x).all())


def _sha256(params: Any) -> str:
    """Of the parameters' bytes, float32, in the order of the tree."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()
