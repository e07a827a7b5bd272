"""Import published checkpoints as a run, with its history if there are several: `olmo-jax import`."""

import collections
import dataclasses
import hashlib
import re
import tempfile
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
from olmo_jax.hf import published
from olmo_jax.hf.gguf import quantization_of
from olmo_jax.hf.gguf_tokenizer import tokenizer_of
from olmo_jax.hf.revisions import parse as parse_revision
from olmo_jax.hf.settings import TOKENIZER, check_tokenizer, eos_of, read_config
from olmo_jax.logs.metrics import METRICS, read_jsonl, write_jsonl
from olmo_jax.probes.geometry import Probe, check_probe
from olmo_jax.probes.texts import check_texts
from olmo_jax.step import member_structs
from olmo_jax.storage.gguf import SUFFIX
from olmo_jax.storage.lock import exclusive_lock
from olmo_jax.storage.names import LONGEST_BEGINNING
from olmo_jax.train import check_vocabulary, cohort_probes, write_run_files
from olmo_jax.weights import WeightsError, at
from sweeps.planning import plan as plans
from sweeps.planning import record as records
from sweeps.planning.plan import Plan
from sweeps.planning.versions import versions
from sweeps.running.stages import data_root

# Records where the run came from: the folder, and for each step the revision and a hash of its parameters.
ORIGIN = "imported.json"


class Revision(NamedTuple):
    """A folder with one checkpoint, its step, and the tokens seen by then, stage and seed, if its name gives them."""

    step: int
    tokens: int | None
    stage: str | None
    seed: str | None
    folder: epath.Path


def import_run(
    workdir: epath.Path,
    path: epath.PathLike,
    config: ConfigDict,
    name: str | None = None,
    step: int | None = None,
    keep_evaluation: bool = False,
) -> str:
    """Import the checkpoints at `path` as a run, with the probe's metrics at each; those already imported are kept.

    All checks that don't need the weights are made before anything of the run is written.

    Args:
      workdir: a new directory, or one of imported runs.
      path: a Hugging Face folder, a .gguf file, or a folder of these folders, named by their steps (`revisions`).
      config: text, probes and evaluations (sweeps/configs/imported.py).
      name: the run's name; by default the folder's. step: the step of a single checkpoint; by default that in the
        folder's name, or 1.
      keep_evaluation: whether a directory that has runs keeps its evaluations; if not, all runs get those of `config`.

    Returns:
      The run's id.

    Raises:
      WeightsError, ConfigError, DataError: those of `hf.import_checkpoint`, configurations and `prepare`, and for
        checkpoints, a directory and a configuration that don't fit together.
    """
    source = at(path).absolute()
    found = revisions(at(path), step)
    check_place(workdir)
    _check_directory(workdir)
    for revision in found:
        hf.check_checkpoint(revision.folder)
    train, evaluation = _configure(
        workdir, config, found, name or (source.stem if source.suffix == SUFFIX else source.name)
    )
    index = prepare(train.data, data_root(workdir, train), say)
    check_vocabulary(train.model.vocab_size, index)
    id_ = run_id(train, index.fingerprint)
    folder = workdir / "runs" / id_
    with exclusive_lock(Path(workdir / ".sweep.lock"), say):
        origin: dict[str, Any] = {"source": str(source), "revisions": {}}
        if (folder / ORIGIN).exists():
            origin = _origin(folder / ORIGIN)
        if origin["source"] != str(source):
            raise ConfigError(f"{id_} was imported from {origin['source']}; give this one another --name")
        last = max(found[-1].step, *map(int, origin["revisions"]), 0)
        train = dataclasses.replace(train, tokens=last * train.tokens_per_step)
        cohort = _with_stack_number(workdir, Cohort(cohorts.shape_of(train, index.fingerprint), (Run(id_, train),)))
        check_probe(train.probe, member_structs(cohort.shape).params)
        check_texts(train.probe.texts, train.model)
        probes = cohort_probes(cohort, index)
        plan = _extended_plan(workdir, cohort, index.fingerprint, evaluation, keep_evaluation)
        write_run_files(workdir, cohort, anew=True)
        write_json(workdir / "sweep.json", records.record(plan, versions()))
        _import_revisions(workdir, cohort, probes, found, origin)
    return id_


def _origin(path: epath.Path) -> dict[str, Any]:
    remedy = "put it back from a copy, or import under another --name"
    origin = read_json(path, remedy)
    steps = origin.get("revisions")
    if not (isinstance(origin.get("source"), str) and isinstance(steps, dict) and all(map(str.isdecimal, steps))):
        raise DamagedFileError(f"{path}: isn't the record of an import; {remedy}")
    return origin


def revisions(path: epath.Path, step: int | None = None) -> list[Revision]:
    """Return the checkpoints at a path, sorted by step.

    They are the folder itself, or the folders in it whose names hf.revisions understands, such as step3000-tokens12B;
    other models in it are left out, and a line on stderr names them.

    Raises:
      WeightsError: no checkpoint, two with the same step, several stages of training, each of which counts from 0, or
        several seeds.
      ConfigError: a negative step, a step for a folder of revisions, or none for a folder whose name has a step that
        can't be parsed.
    """
    require(step is None or step >= 0, "--step", step, "needs 0 or more")
    if not path.is_dir() and not _is_model(path):
        what = "is a file; give the folder that holds it" if path.exists() else "no such folder"
        raise WeightsError(
            f"{path}: {what}; an import takes a folder with config.json and .safetensors files, a folder of such "
            f"folders, a .gguf file, or one of the names {', '.join(published.MODELS)}"
        )
    if _is_model(path):
        return [_single(path.absolute(), step)]
    if step is not None:
        raise ConfigError(f"--step={step}: {path} is a folder of revisions, whose names give their steps; leave it out")
    folders = sorted(folder for folder in path.iterdir() if _is_model(folder))
    found = [revision for folder in folders if (revision := _named_revision(folder)) is not None]
    if not found:
        raise WeightsError(
            f"{path}: is neither a model (config.json) nor a folder of revisions with names such as step3000-tokens12B"
        )
    if unnamed := [folder.name for folder in folders if _named_revision(folder) is None]:
        say(f"{path}: left out, as their names give no step: {', '.join(unnamed)}")
    for what in ("stage", "seed"):
        values = {getattr(revision, what) for revision in found}
        if len(values) > 1:
            names = ", ".join(sorted(map(str, values)))
            raise WeightsError(
                f"{path}: has revisions of several {what}s ({names}); import each from a separate folder"
            )
    found.sort(key=lambda revision: revision.step)
    for first, second in zip(found, found[1:], strict=False):
        if first.step == second.step:
            raise WeightsError(f"{path}: {first.folder.name} and {second.folder.name} have the same step; remove one")
    return found


def _is_model(folder: epath.Path) -> bool:
    if folder.suffix == SUFFIX and folder.is_file():
        return True
    return folder.is_dir() and any((folder / file).exists() for file in ("config.json", "config.yaml"))


def _named_revision(folder: epath.Path) -> Revision | None:
    """Return the revision that a folder's name describes; None if the name has no step."""
    name = parse_revision(folder.name)
    if name is None or name.place is None:
        return None
    return Revision(name.place, name.tokens, name.stage, name.seed, folder)


def _single(folder: epath.Path, step: int | None) -> Revision:
    revision, name = _named_revision(folder), parse_revision(folder.name)
    # A single folder called 7B is a model of that size, not one that has seen so many tokens.
    if revision is not None and name is not None and name.step is not None:
        return revision if step is None else revision._replace(step=step)
    if step is None and re.search(r"step\d", folder.name):
        raise ConfigError(f"{folder}: its name has a step in an unknown form; give the step with --step")
    return Revision(1 if step is None else step, None, None, None, folder)


def _configure(
    workdir: epath.Path, config: ConfigDict, found: Sequence[Revision], name: str
) -> tuple[TrainConfig, EvalConfig]:
    """Return the run's configuration, the model's from its folder and the rest from `config`, and the evaluations."""
    sweep = plans.read_sweep(config)
    values = sweep.train.to_dict()
    data = values["data"]
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer, eos_token = _tokenizer(data, found, epath.Path(scratch))
        architecture, model = _one_model(found, tokenizer)
        check_tokenizer(tokenizer, model.vocab_size, eos_token)
        copy = _copy_tokenizer(workdir, tokenizer)
    data |= {"tokenizer": str(copy), "eos_token": eos_token, "name": f"{data['name']}-{copy.stem}"}
    data["sequence_length"] = min(data["sequence_length"], model.context_length)
    values |= {
        "name": _plain(name),
        "imported": architecture,
        "imported_quantization": quantization_of(found[0].folder) if found[0].folder.suffix == SUFFIX else "",
        "model": dataclasses.asdict(model),
        "tokens": found[-1].step * data["batch_size"] * data["sequence_length"],
        "checkpoint": {},
    }
    return from_config_dict(TrainConfig, values, "config.train"), sweep.evaluation


def _plain(name: str) -> str:
    """Return a name for the run that is valid in file names; a long one is cut and ends in a hash."""
    plain = re.sub(r"[^\w.-]", "_", name).lstrip(".").encode()
    if len(plain) <= LONGEST_BEGINNING:
        return plain.decode()
    return f"{plain[: LONGEST_BEGINNING - 9].decode(errors='ignore')}-{hashlib.sha256(plain).hexdigest()[:8]}"


def _tokenizer(data: dict[str, Any], found: Sequence[Revision], scratch: epath.Path) -> tuple[epath.Path, str]:
    """Return the tokenizer.json that the configuration names, else that of a revision or their folder, and its EOS.

    The tokenizer of a GGUF file is written to the folder `scratch`.
    """
    if data["tokenizer"] != "bpe":
        file = at(data["tokenizer"])
        if not file.is_file():
            what = "is a folder" if file.exists() else "no such file"
            remedy = f"{what}; name the tokenizer.json that the model was trained with"
            raise ConfigError(f"config.train.data.tokenizer = {data['tokenizer']!r}: {remedy}")
        return file, data["eos_token"]
    folders = [revision.folder for revision in found]
    if folders[0].suffix == SUFFIX:
        file = scratch / TOKENIZER
        file.write_text(tokenizer_of(folders[0]))
        return file, eos_of(folders[0], file)
    for folder in (*folders, *([folders[0].parent] if len(folders) > 1 else ())):
        if (folder / TOKENIZER).exists():
            return folder / TOKENIZER, eos_of(folders[-1], folder / TOKENIZER)
    raise ConfigError(
        f"{folders[0]}: has no {TOKENIZER}, which is needed to tokenise text; put it there, or name one in "
        "--config.train.data.tokenizer (olmo-jax geometry needs none)"
    )


def _one_model(found: Iterable[Revision], tokenizer: epath.Path) -> tuple[str, ModelConfig]:
    """Return the architecture and configuration that all revisions share; raises ConfigError if they differ."""
    configs = {revision.folder: read_config(revision.folder, tokenizer) for revision in found}
    first, (family, config) = next(iter(configs.items()))
    for folder, (other_family, other) in configs.items():
        if (other_family, other) != (family, config):
            raise ConfigError(
                f"{folder} is another model than {first}, according to its config.json; import them separately"
            )
    return family.architecture, config


def _copy_tokenizer(workdir: epath.Path, tokenizer: epath.Path) -> epath.Path:
    """Copy the tokenizer into the working directory, which then no longer needs the imported folder."""
    content = tokenizer.read_bytes()
    copy = workdir / "tokenizers" / f"{hashlib.sha256(content).hexdigest()[:8]}.json"
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_whole(copy, content)
    return copy


def _check_directory(workdir: epath.Path) -> None:
    """Raise ConfigError for a directory with runs that were trained, or without the sweep.json of its runs."""
    if not (workdir / "sweep.json").exists():
        if (workdir / "cohorts").exists():
            raise ConfigError(f"{workdir} has runs but no sweep.json; put it back, or choose another --workdir")
        return
    if trained := [run.id for run in records.recorded_plan(workdir).runs if not run.config.imported]:
        raise ConfigError(f"{workdir} holds runs that were trained ({trained[0]}); import into another --workdir")


def _with_stack_number(workdir: epath.Path, cohort: Cohort) -> Cohort:
    """Return the cohort of one imported run with its stack's number among those of its shape in the directory.

    Raises ConfigError if the run was imported with other probes.
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


def _extended_plan(
    workdir: epath.Path, cohort: Cohort, fingerprint: str, evaluation: EvalConfig, keep_evaluation: bool
) -> Plan:
    """Return the plan of the directory's other runs and this one."""
    data = {cohort.shape.data_name: fingerprint}
    if not (workdir / "sweep.json").exists():
        return Plan((cohort,), data, evaluation, stacks=(cohort,))
    old = records.recorded_plan(workdir)
    if not keep_evaluation and evaluation != old.evaluation:
        say(f"{workdir}: all its runs will be evaluated again, with the evaluations of this configuration")
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
    """Write the checkpoint and metrics of each revision that hasn't been imported yet."""
    (run,) = cohort.runs
    folder = workdir / "runs" / run.id
    with open_checkpoints(directory(workdir, cohort.folder)) as checkpoints:
        imported = set(checkpoints.steps())
        rows = {row["step"]: row for row in read_jsonl(folder / METRICS) if row["step"] in imported}
        with progress(f"import {run.id}", len(found), len(imported)) as show:
            for revision in found:
                if revision.step in imported:
                    continue
                _, params = hf.import_checkpoint(revision.folder)
                if bad := [path_name(p) for p, x in jax.tree_util.tree_leaves_with_path(params) if not _finite(x)]:
                    say(f"{revision.folder}: {', '.join(bad[:3])} isn't finite; its metrics and losses will be missing")
                sha256 = _sha256(params)
                # One array at a time, so that no second copy of a large model is held.
                leaves, structure = jax.tree.flatten(params)
                del params
                params_M = jax.tree.unflatten(structure, [jnp.asarray(leaves.pop(0)[None]) for _ in range(len(leaves))])
                row: dict[str, Any] = {"step": revision.step, "tokens": revision.tokens}
                for probe in probes.values():
                    row |= {name: float(str(x_M[0])) for name, x_M in jax.device_get(probe(params_M)).items()}
                rows[revision.step] = row
                # The checkpoint is written last, as its existence means that the step is done.
                origin["revisions"][str(revision.step)] = {"name": revision.folder.name, "sha256": sha256}
                write_json(folder / ORIGIN, origin)
                write_jsonl(folder / METRICS, [rows[step] for step in sorted(rows)])
                checkpoints.save_params(revision.step, params_M, [run.id])
                imported.add(revision.step)
                show(len(imported), revision.folder.name)
    last = max(imported)
    status = {"state": "done", "step": last, "total_steps": run.config.total_steps}
    write_json(folder / "status.json", status | {"diverged_at": None, "reason": ""})


def _finite(x: np.ndarray) -> bool:
    return bool(np.isfinite(x).all())


def _sha256(params: Any) -> str:
    """Return the hash of the parameters' bytes, float32, in the order of the tree."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()
