"""Import published checkpoints as a run, with its history if there are several: `olmo-jax import`."""

import collections
import dataclasses
import hashlib
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

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
from olmo_jax.config import ConfigError, ModelConfig, TrainConfig, from_config_dict
from olmo_jax.config.identity import run_id
from olmo_jax.console import progress, say
from olmo_jax.data.prepare import prepare
from olmo_jax.data.shards import TokenIndex
from olmo_jax.execution.sharding import path_name
from olmo_jax.files import DamagedFileError, read_json, write_json, write_whole
from olmo_jax.hf.gguf import quantization_of
from olmo_jax.hf.gguf_tokenizer import tokenizer_of
from olmo_jax.hf.settings import TOKENIZER, check_tokenizer, eos_of, read_config
from olmo_jax.logs.metrics import METRICS, read_jsonl, write_jsonl
from olmo_jax.probes.geometry import Probe, check_probe
from olmo_jax.probes.texts import check_texts
from olmo_jax.step import member_structs
from olmo_jax.storage.gguf import SUFFIX
from olmo_jax.storage.lock import exclusive_lock
from olmo_jax.storage.names import LONGEST_BEGINNING
from olmo_jax.storage.run_files import data_root
from olmo_jax.storage.run_status import DROPPED
from olmo_jax.train import check_vocabulary, cohort_probes, write_run_files
from olmo_jax.weights import at
from sweeps.models.revisions import ORIGIN, Revision, revisions
from sweeps.planning import plan as plans
from sweeps.planning import record as records
from sweeps.planning.plan import Plan
from sweeps.planning.versions import versions


class Step(Protocol):
    """What else to do with each checkpoint of an import, once it has been measured."""

    @property
    def keeps(self) -> bool:
        """Return whether all checkpoints are kept, or only the last one."""

    def is_done(self, plan: Plan, step: int) -> bool:
        """Return whether it has been done with a step, so that its checkpoint isn't needed any more."""

    def carry_out(self, plan: Plan, index: TokenIndex) -> None:
        """Do it with the checkpoints that there are. Raises StoppedError to end the import here."""


def import_run(
    workdir: epath.Path,
    path: epath.PathLike,
    config: ConfigDict,
    name: str | None = None,
    step: int | None = None,
    keep_evaluation: bool = False,
) -> str:
    """Import the checkpoints at `path` as a run, with the probe's metrics at each; those already imported are kept.

    Args:
      path: a Hugging Face folder, a .gguf file, or a folder of these folders, named by their steps (`revisions`).
      name: the run's name; by default the folder's. step: the step of a single checkpoint; by default that in the
        folder's name, or 1.
      workdir, config, keep_evaluation: see `import_revisions`, whose id of the run this returns and whose errors it
        raises.
    """
    source = at(path).absolute()
    found = revisions(at(path), step)
    name = name or (source.stem if source.suffix == SUFFIX else source.name)
    return import_revisions(workdir, str(source), found, config, name, keep_evaluation)


def import_revisions(
    workdir: epath.Path,
    source: str,
    found: Sequence[Revision],
    config: ConfigDict,
    name: str,
    keep_evaluation: bool = False,
    seed: int = 0,
    each: Step | None = None,
) -> str:
    """Import checkpoints as a run, with the probe's metrics at each; those already imported are kept.

    All checks that don't need the weights are made before anything of the run is written.

    Args:
      workdir: a new directory, or one of imported runs.
      source: what the checkpoints are of; it can't change.
      config: text, probes and evaluations (sweeps/configs/imported.py).
      keep_evaluation: whether a directory that has runs keeps its evaluations; if not, all runs get those of `config`.
      seed: number of the run among replicates, from 1; 0 for a run that has none.
      each: what else to do with each checkpoint; unless it keeps them, a checkpoint is then dropped, except for the
        last. None for nothing, and keeps them all.

    Returns:
      The run's id.

    Raises:
      WeightsError, ConfigError, DataError: those of `hf.import_checkpoint`, configurations and `prepare`, and for
        checkpoints, a directory and a configuration that don't fit together.
    """
    check_place(workdir)
    _check_directory(workdir)
    for revision in found:
        if not revision.fetch:
            hf.check_checkpoint(revision.folder)
    train, evaluation = _configure(workdir, config, found, name, seed)
    index = prepare(train.data, data_root(workdir, train), say)
    check_vocabulary(train.model.vocab_size, index)
    id_ = run_id(train, index.fingerprint)
    folder = workdir / "runs" / id_
    with exclusive_lock(Path(workdir / ".sweep.lock"), say):
        origin: dict[str, Any] = {"source": source, "revisions": {}}
        if (folder / ORIGIN).exists():
            origin = _origin(folder / ORIGIN)
        if origin["source"] != source:
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
        of_run = dataclasses.replace(plan, stacks=(cohort,))
        _import_revisions(workdir, of_run, index, probes, found, origin, each)
    return id_


def _origin(path: epath.Path) -> dict[str, Any]:
    remedy = "put it back from a copy, or import under another --name"
    origin = read_json(path, remedy)
    steps = origin.get("revisions")
    if not (isinstance(origin.get("source"), str) and isinstance(steps, dict) and all(map(str.isdecimal, steps))):
        raise DamagedFileError(f"{path}: isn't the record of an import; {remedy}")
    return origin


def _configure(
    workdir: epath.Path, config: ConfigDict, found: Sequence[Revision], name: str, seed: int
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
        "init_seed": seed,
        "data_seed": seed,
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
    workdir: epath.Path,
    plan: Plan,
    index: TokenIndex,
    probes: dict[int, Probe],
    found: Sequence[Revision],
    origin: dict[str, Any],
    each: Step | None,
) -> None:
    """Write the checkpoint and metrics of each revision that hasn't been imported yet. `plan` is of this run alone."""
    (cohort,) = plan.stacks
    (run,) = cohort.runs
    folder = workdir / "runs" / run.id
    known = origin["revisions"]
    rolling = each is not None and not each.keeps
    for revision in found:
        entry = known.get(str(revision.step), {})
        if entry and revision.verdict:
            entry["verdict"] = revision.verdict
        if not rolling:
            entry.pop("rolling", None)
    with open_checkpoints(directory(workdir, cohort.folder)) as checkpoints:
        stored = set(checkpoints.steps())
        imported = {int(step) for step, entry in known.items() if entry.get("dropped")} | stored
        rows = {row["step"]: row for row in read_jsonl(folder / METRICS) if row["step"] in imported}

        def is_done(step: int) -> bool:
            if each is None or each.keeps:
                return step in stored
            return step in imported and (step in stored or each.is_done(plan, step))

        with progress(f"import {run.id}", len(found), sum(is_done(revision.step) for revision in found)) as show:
            for i, revision in enumerate(found):
                step = revision.step
                if not is_done(step):
                    with revision.weights() as weights:
                        params_M, sha256 = _read(weights)
                    row: dict[str, Any] = {"step": step, "tokens": revision.tokens}
                    for probe in probes.values():
                        row |= {name: float(str(x_M[0])) for name, x_M in jax.device_get(probe(params_M)).items()}
                    rows[step] = row
                    # The checkpoint is written last, as its existence means that the step is done.
                    known[str(step)] = {"name": revision.name, "sha256": sha256}
                    known[str(step)] |= {"verdict": revision.verdict} if revision.verdict else {}
                    known[str(step)] |= {"rolling": True} if rolling else {}
                    write_json(folder / ORIGIN, origin)
                    write_jsonl(folder / METRICS, [rows[s] for s in sorted(rows)])
                    checkpoints.save_params(step, params_M, [run.id])
                    del params_M
                    stored.add(step)
                    imported.add(step)
                    show(i + 1, revision.name)
                if each and step in stored:
                    _write_status(folder, run, max(imported), whole=each.keeps and imported == stored)
                    each.carry_out(plan, index)
                    if rolling and known[str(step)].get("rolling") and revision is not found[-1]:
                        known[str(step)]["dropped"] = True
                        write_json(folder / ORIGIN, origin)
                        checkpoints.delete(step)
                        stored.remove(step)
    write_json(folder / ORIGIN, origin)
    _write_status(folder, run, max(imported), whole=imported == stored)


def _write_status(folder: epath.Path, run: Run, step: int, whole: bool) -> None:
    status = {"state": "done", "step": step, "total_steps": run.config.total_steps, "diverged_at": None, "reason": ""}
    write_json(folder / "status.json", status if whole else status | {DROPPED: True})


def _read(folder: epath.Path) -> tuple[Any, str]:
    """Return the parameters in a folder, as a stack of one member, and their hash."""
    _, params = hf.import_checkpoint(folder)
    if bad := [path_name(p) for p, x in jax.tree_util.tree_leaves_with_path(params) if not _finite(x)]:
        say(f"{folder}: {', '.join(bad[:3])} isn't finite; its metrics and losses will be missing")
    sha256 = _sha256(params)
    # One array at a time, so that no second copy of a large model is held.
    leaves, structure = jax.tree.flatten(params)
    del params
    return jax.tree.unflatten(structure, [jnp.asarray(leaves.pop(0)[None]) for _ in range(len(leaves))]), sha256


def _finite(x: np.ndarray) -> bool:
    return bool(np.isfinite(x).all())


def _sha256(params: Any) -> str:
    """Return the hash of the parameters' bytes, float32, in the order of the tree."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()
