"""Describe a sweep as a SkyPilot task for cloud GPUs and TPU VMs: one file, started once per cohort."""

import itertools
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from olmo_jax.config.validation import ConfigError, require
from sweeps.remote.options import Options

# The Python that comes with a machine is often older than 3.11.
_SETUP = """\
set -e
python3 -m pip install --quiet uv
python3 -m uv python install 3.12
make setup PYTHON="$(python3 -m uv python find 3.12)"
"""
_EXTRA = """\
.venv/bin/python -m pip install --quiet --editable '.[{extra}]'
"""


def write_task(
    folder: Path, command: Sequence[str], cohorts: Sequence[int], options: Options, depths: Sequence[int] = ()
) -> list[str]:
    """Write sky.yaml into `folder`, which doesn't need SkyPilot, and return lines that say how to start the task.

    The current folder, which must be the repository, is copied to the machine. Raises ConfigError if it isn't, if the
    configuration lies outside it, and for GPUs without a kind.
    """
    repository = Path.cwd()
    if not (repository / "Makefile").exists() or not (repository / "requirements").exists():
        raise ConfigError("--engine=sky: run it in the repository's folder, which is copied to the cloud machine")
    words = [re.sub(f"=({re.escape(str(repository))})/", "=", word) for word in command]
    for word in words:
        if word.startswith("--config=/"):
            raise ConfigError(
                f"{word}: lies outside {repository}, which is copied to the cloud machine; put it in that folder"
            )
    name = re.sub(r"[^a-z0-9]+", "-", f"olmo-jax-{folder.parent.name}".lower()).strip("-")
    resources = _resources(options)
    kind = str(resources.get("accelerators", ""))
    extra = "tpu" if kind.startswith("tpu") else "gpu"
    task = {
        "name": name,
        "workdir": ".",
        "resources": resources,
        "envs": {"COHORT": str(cohorts[0])},
        "setup": _SETUP + (_EXTRA.format(extra=extra) if kind else ""),
        "run": f'{shlex.join([".venv/bin/python", *words[1:]])} --cohort="$COHORT"\n',
    }
    path = folder / "sky.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.dump(task, Dumper=_Blocks, sort_keys=False, width=1000), encoding="utf-8")
    place = shlex.quote(os.path.relpath(path))
    lines = [f"{path}: a SkyPilot task; start it for every cohort with"]
    levels = sorted(zip(depths or [0] * len(cohorts), cohorts, strict=True))
    for depth, group in itertools.groupby(levels, key=lambda level: level[0]):
        if depth:
            lines.append("and once all of these are done, for the branches of their runs, with")
        lines.append(
            f"for K in {' '.join(str(k) for _, k in group)}; do sky jobs launch --yes --detach-run --name={name}-$K "
            f"--env COHORT=$K {place}; done"
        )
    lines.append("to list them: sky jobs queue; to stop one: sky jobs cancel ID; to resume: run the loop again")
    if not any(word.startswith("--mirror") for word in words):
        lines.append("without --mirror=BUCKET results are lost with the machine, and interrupted cohorts start over")
    return lines


def _resources(options: Options) -> dict[str, Any]:
    more = {key: yaml.safe_load(value) for key, _, value in (item.partition("=") for item in options.more)}
    kind = more.pop("accelerators", None)
    need = "needs the kind of GPU for --engine=sky, such as --more=accelerators=H100"
    require(kind is not None or not options.gpus, "--gpus", options.gpus, need)
    requested = {
        "accelerators": f"{kind}:{options.gpus}" if options.gpus else kind,
        "cpus": options.cpus and f"{options.cpus}+",
        "memory": options.memory_gb and f"{options.memory_gb}+",
    }
    recovery = {"job_recovery": {"recover_on_exit_codes": [75]}}  # a run that a signal stopped is run again
    return {key: value for key, value in requested.items() if value} | {"use_spot": True} | recovery | more


class _Blocks(yaml.SafeDumper):
    """A YAML writer that writes text of several lines as a block, which people can read and edit."""


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Blocks.add_representer(str, _block)
