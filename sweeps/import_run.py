"""Published checkpoints as a run of a working directory, with a history where there are several: `olmo-jax import`."""

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from eval.config import EvalConfig
from olmo_jax import cohort as cohorts
from olmo_jax import hf
from olmo_jax.checkpoint import directory, open_checkpoints
from olmo_jax.cohort import Cohort, Run
from olmo_jax.config import ConfigError, ModelConfig, TrainConfig, from_config_dict
from olmo_jax.data.prepare import fingerprint, prepare
from olmo_jax.data.shards import TokenIndex
from olmo_jax.hf.settings import TOKENIZER, check_tokenizer, eos_of, read_config
from olmo_jax.identity import run_id
from olmo_jax.metrics import METRICS, read_json, read_jsonl, write_json, write_jsonl
from olmo_jax.probe import check_probe, make_probes
from olmo_jax.progress import progress, say
from olmo_jax.train import check_vocabulary, probe_documents
from olmo_jax.weights import WeightsError
from sweeps import plan as plans
from sweeps.plan import Plan
from sweeps.run import data_root, versions

# step3000, step3000-tokens12B, stage1-step3000-tokens12B, step3000-unsharded
_REVISION = re.compile(r"(?:stage\d+-)?step(\d+)(?:-tokens(\d+)([KMBT]?))?(?:-unsharded)?")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
# Where the run came from: the folder, and by step the revision and a hash of its parameters.
ORIGIN = "imported.json"


class Revision(NamedTuple):
    """A folder with one checkpoint, its step, and the tokens seen by then where its name tells."""

    step: int
    tokens: int | None
    folder: epath.Path


def import_run(
    workdir: epath.Path, path: epath.PathLike, config: ConfigDict, name: str | None = None, step: int | None = None
) -> str:
    """Makes a run of what lies at `path`: checkpoints, and the probe's metrics at each. What is there already is kept.

    Everything that can be refused is refused before anything is written but prepared text.

    Args:
      workdir: a new directory, or one of imported runs.
      path: a Hugging Face folder, or a folder of such, named by their steps (`revisions`).
      config: text, probes and evaluations (sweeps/configs/imported.py); the evaluations are the whole directory's.
      name: of the run; the folder's by default. step: of a single checkpoint; told by its name, or 1.

    Returns:
      The run's id.

    Raises:
      WeightsError, ConfigError, DataError: what `hf.import_checkpoint`, configurations and `prepare` raise, and what
        doesn't fit together.
    """
    source = epath.Path(path)
    found = revisions(source, step)
    train, evaluation = _configure(workdir, config, found, name or source.absolute().name)
    index = prepare(train.data, data_root(workdir, train), say)
    check_vocabulary(train.model.vocab_size, index)
    print_ = str(fingerprint(train.data))
    run = Run(run_id(train, print_), train)
    cohort = Cohort(cohorts.shape_of(train, print_), (run,))
    plan = _joined(workdir, Plan((cohort,), {train.data.name: print_}, evaluation))
    check_probe(train.probe, cohorts.member_structs(cohort.shape).params)
    origin_file = workdir / "runs" / run.id / ORIGIN
    origin = read_json(origin_file) if origin_file.exists() else {"source": str(source.absolute()), "revisions": {}}
    if origin["source"] != str(source.absolute()):
        raise ConfigError(f"{run.id} was imported from {origin['source']}; give this one another --name")

    origin_file.parent.mkdir(parents=True, exist_ok=True)
    record = {"run_id": run.id, "cohort": cohort.id, "config": dataclasses.asdict(train)}
    write_json(origin_file.with_name("config.json"), record)
    write_json(workdir / "sweep.json", plans.record(plan, versions()))
    _import_revisions(workdir, cohort, index, found, origin)
    return run.id


def revisions(path: epath.Path, step: int | None = None) -> list[Revision]:
    """The checkpoints at a path, by step: the folder itself, or those in it that are named like step3000 or
    step3000-tokens12B. Raises WeightsError where there are none, or two of one step.
    """
    if not path.is_dir():
        raise WeightsError(f"{path}: no such folder; give one with config.json and .safetensors, or a folder of such")
    named = re.fullmatch(_REVISION, path.absolute().name)
    if any((path / file).exists() for file in ("config.json", "config.yaml")):
        tokens = int(named[2]) * _UNITS[named[3]] if named and named[2] else None
        told = int(named[1]) if named else 1
        return [Revision(told if step is None else step, tokens, path)]
    if step is not None:
        raise ConfigError(f"--step={step}: {path} is a folder of revisions, whose names tell their steps; leave it out")
    found = []
    for folder in path.iterdir():
        if folder.is_dir() and (match := re.fullmatch(_REVISION, folder.name)):
            tokens = int(match[2]) * _UNITS[match[3]] if match[2] else None
            found.append(Revision(int(match[1]), tokens, folder))
    if not found:
        raise WeightsError(
            f"{path}: neither a model (config.json) nor a folder of revisions named like step3000 or step3000-tokens12B"
        )
    found.sort(key=lambda revision: revision.step)
    for one, next_ in zip(found, found[1:], strict=False):
        if one.step == next_.step:
            raise WeightsError(f"{path}: {one.folder.name} and {next_.folder.name} are of one step; move one away")
    return found


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
        "name": re.sub(r"[^\w.-]", "_", name).lstrip("."),
        "imported": architecture,
        "model": dataclasses.asdict(model),
        "tokens": max(found[-1].step, 1) * data["batch_size"] * data["sequence_length"],
        "checkpoint": {},
    }
    return from_config_dict(TrainConfig, values, "config.train"), sweep.evaluation


def _tokenizer(data: dict[str, Any], found: Sequence[Revision]) -> tuple[epath.Path, str]:
    """The tokenizer.json of any revision, of the folder that they lie in, or that the configuration names; its end."""
    for place in (*(revision.folder for revision in found), found[0].folder.parent):
        if (place / TOKENIZER).exists():
            return place / TOKENIZER, eos_of(found[-1].folder, place / TOKENIZER)
    if data["tokenizer"] == "bpe":
        raise ConfigError(
            f"{found[0].folder}: has no {TOKENIZER}, and no text can be read without; put it there, or name one in "
            "--config.train.data.tokenizer (olmo-jax geometry needs none)"
        )
    file = epath.Path(data["tokenizer"])
    if not file.exists():
        raise ConfigError(f"config.train.data.tokenizer = {data['tokenizer']!r}: no such file")
    return file, data["eos_token"]


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
        partial = kept.with_name(kept.name + ".partial")
        partial.write_bytes(content)
        partial.replace(kept)
    return kept


def _joined(workdir: epath.Path, new: Plan) -> Plan:
    """The plan of the directory's other runs and this one; raises ConfigError for a directory of trained runs."""
    if not (workdir / "sweep.json").exists():
        plans.check_record(workdir, new)
        return new
    old = plans.recorded_plan(workdir)
    if trained := [run.id for run in old.runs if not run.config.imported]:
        raise ConfigError(f"{workdir} holds runs that were trained ({trained[0]}); import into a --workdir of its own")
    (cohort,) = new.cohorts
    others = tuple(other for other in old.cohorts if other.id != cohort.id)
    return Plan((*others, cohort), old.fingerprints | new.fingerprints, new.evaluation)


def _import_revisions(
    workdir: epath.Path, cohort: Cohort, index: TokenIndex, found: Sequence[Revision], origin: dict[str, Any]
) -> None:
    shape, (run,) = cohort.shape, cohort.runs
    place = workdir / "runs" / run.id
    documents = probe_documents(cohort, index)
    probes = make_probes(shape.probe, shape.model, index.vocab_size, documents, cohorts.over_members)
    with open_checkpoints(directory(workdir, cohort.id)) as checkpoints:
        there = set(checkpoints.steps())
        rows = {row["step"]: row for row in read_jsonl(place / METRICS) if row["step"] in there}
        with progress(f"import {run.id}", len(found), len(there)) as show:
            for revision in found:
                if revision.step in there:
                    continue
                _, params = hf.import_checkpoint(revision.folder)
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
    status = {"state": "done", "step": last, "total_steps": run.config.total_steps, "diverged_at": None}
    write_json(place / "status.json", status)


def _sha256(params: Any) -> str:
    """Of the parameters' bytes, float32, in the order of the tree."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()
