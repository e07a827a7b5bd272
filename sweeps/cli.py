"""The command line: olmo-jax VERB --config=FILE[:arg] [--config.a.b=value] --workdir=DIR, and olmo-jax geometry PATH.

Exit codes: 0 done, 1 failed, 2 bad usage or configuration, 75 stopped by a signal after a checkpoint (run it again).
Heavy imports wait until a verb needs them, so that --help answers at once.
"""

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any

DONE, FAILED, BAD, STOPPED = 0, 1, 2, 75

_VERBS = {
    "plan": "show the cohorts, runs and steps of a sweep before anything runs (--json for programs)",
    "prepare": "corpus to token shards",
    "train": "train one run, or a sweep's runs: prepare and train, no more",
    "run": "all of a sweep: prepare, train, evaluate, report; again after any interruption",
    "status": "what a working directory holds so far",
    "evaluate": "loss, quantisation and fine-tuning of what is trained",
    "report": "write results.parquet and report/index.html from what is there",
    "geometry": "a table of the geometry of the weights at PATH: a working directory, .safetensors or .npy",
}
_NEEDS_CONFIG = ("plan", "prepare", "train", "run")
_OF_GEOMETRY = ("path", "run", "step", "tensors", "metrics", "gauge")


def main(argv: Sequence[str] | None = None) -> int:
    """Carries out one command; returns its exit code, with one line on stderr for what went wrong."""
    argv = sys.argv[1:] if argv is None else list(argv)
    ours, overrides = _split(argv)
    parser = _parser()
    try:
        arguments = parser.parse_intermixed_args(ours)  # PATH may follow options
    except SystemExit as error:
        return int(error.code or 0)
    if arguments.verb == "geometry":
        if not arguments.path:
            return _fail(BAD, "olmo-jax geometry needs PATH: a working directory, .safetensors or .npy")
        if overrides or arguments.workdir:
            return _fail(BAD, "olmo-jax geometry takes PATH alone, and neither --config nor --workdir")
        return _guarded(arguments, overrides, "olmo-jax " + shlex.join(argv))
    stray = [name for name in _OF_GEOMETRY if getattr(arguments, name) is not None]
    if stray:
        option = arguments.path if stray[0] == "path" else f"--{stray[0]}"
        return _fail(BAD, f"olmo-jax {arguments.verb} doesn't take {option!r}; only olmo-jax geometry does")
    if arguments.verb in _NEEDS_CONFIG and not overrides:
        return _fail(BAD, f"olmo-jax {arguments.verb} needs --config=FILE, such as --config=sweeps/configs/demo.py")
    if arguments.verb != "plan" and not arguments.workdir:
        return _fail(BAD, f"olmo-jax {arguments.verb} needs --workdir=DIR")
    return _guarded(arguments, overrides, "olmo-jax " + shlex.join(argv))


def _guarded(arguments: argparse.Namespace, overrides: list[str], command: str) -> int:
    """The command, what users can mend turned into one line and an exit code; anything else is a bug and is shown."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    _quiet()
    from olmo_jax.checkpoint import CheckpointError
    from olmo_jax.config import ConfigError
    from olmo_jax.data import DataError
    from olmo_jax.metrics import MetricsError
    from olmo_jax.weights import WeightsError
    from sweeps.analysis import AnalysisError

    try:
        return _carry_out(arguments, overrides, command)
    except ConfigError as error:
        return _fail(BAD, str(error))
    except (DataError, CheckpointError, MetricsError, AnalysisError, WeightsError) as error:
        return _fail(FAILED, str(error))
    except OSError as error:
        return _fail(FAILED, f"{error.filename or arguments.workdir or arguments.path}: {error.strerror or error}")
    except KeyboardInterrupt:
        return _fail(STOPPED, "left at once; the same command goes on from what is safe")


def _carry_out(arguments: argparse.Namespace, overrides: list[str], command: str) -> int:
    if arguments.verb == "geometry":
        return _geometry(arguments)
    from etils import epath

    from sweeps import plan as plans
    from sweeps import run as stages

    verb = arguments.verb
    workdir = epath.Path(os.path.abspath(arguments.workdir) if "://" not in arguments.workdir else arguments.workdir)
    plan = plans.resolve(plans.read_sweep(load_config(overrides))) if overrides else plans.recorded_plan(workdir)
    if verb == "plan":
        print(json.dumps(plans.as_json(plan)) if arguments.json else "\n".join(plans.lines(plan)))
        return DONE
    if verb == "prepare":
        stages.prepare_all(workdir, plan)
        return DONE
    if verb == "status":
        from sweeps.status import status_lines

        plans.check_record(workdir, plan)
        print("\n".join(status_lines(workdir, plan)))
        return DONE
    if verb == "report":
        plans.check_record(workdir, plan)
        print(f"Report: {stages.report(workdir, command)[0]}")
        return DONE
    stages.keep_compiled(workdir)
    with stages.stop_on_signals() as stop:
        if verb == "run":
            ended = stages.run(workdir, plan, stop, command)
        else:
            indexes = stages.begin(workdir, plan)
            if verb == "train":
                ended = stages.train_all(workdir, plan, indexes, stop)
            else:
                ended = stages.evaluate_all(workdir, plan, indexes, stop)
    return DONE if ended else STOPPED


def _geometry(arguments: argparse.Namespace) -> int:
    from sweeps import weights_table

    metrics = weights_table.DEFAULT_METRICS if arguments.metrics is None else arguments.metrics.split(",")
    rows = weights_table.measure(
        arguments.path, arguments.run, arguments.step, arguments.tensors, metrics, arguments.gauge
    )
    if arguments.json:
        print(json.dumps(weights_table.as_json(arguments.path, rows), allow_nan=False))
    else:
        print("\n".join(weights_table.lines(rows)))
    return DONE


def load_config(arguments: Sequence[str]) -> Any:
    """The ConfigDict of `--config=FILE[:arg]` with its `--config.a.b=value` overrides, in ml_collections' way.

    Raises ConfigError naming the file and the key: no such file, a file that fails, an unknown key, a value of the
    wrong type, or a key that the file's own grid sets (the override would be lost).
    """
    from absl import flags
    from ml_collections import ConfigDict, config_flags

    from olmo_jax.config import ConfigError, unknown_key

    name = _file_name(arguments)
    file = name.split(":")[0]
    if not os.path.isfile(file):
        raise ConfigError(f"--config={name}: no file {file}; give the path of a .py file with get_config")

    def parse(given: Sequence[str]) -> Any:
        values = flags.FlagValues()
        argv = ["olmo-jax", *given]
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
        try:
            values(argv)
            return values.config
        except Exception as error:  # noqa: BLE001  the file is the user's own program and may raise anything
            cause = next((e for e in _causes(error) if isinstance(e, ConfigError)), error)
            text = str(cause).strip().splitlines()[-1] if str(cause).strip() else type(cause).__name__
            raise ConfigError(f"{file}: {text}") from error

    plain = parse([f"--config={name}"])
    if not isinstance(plain, ConfigDict):
        raise ConfigError(f"{file}: get_config returned {type(plain).__name__}; it must return a ConfigDict")
    for key in _override_keys(arguments):
        at = plain
        for part in key.split("."):
            if not isinstance(at, ConfigDict) or part not in at:
                where = f"{file}: config" + (f".{key.rsplit('.', 1)[0]}" if "." in key else "")
                raise ConfigError(unknown_key(where, part, at if isinstance(at, ConfigDict) else ()))
            at = at[part]
        if any(f"train.{k}" == key for point in plain.get("grid", ()) for k in point):
            raise ConfigError(f"{file}: config.{key} is set by the file's grid, point by point; change it there")
    return parse(arguments)


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments that are ours, and those about the configuration, each of these as one `--key=value`."""
    ours: list[str] = []
    overrides: list[str] = []
    ahead = list(argv)
    while ahead:
        argument = ahead.pop(0)
        if not re.match(r"--(no)?config(\.|=|$)", argument):
            ours.append(argument)
        elif "=" in argument or argument.startswith("--noconfig") or not ahead or ahead[0].startswith("--"):
            overrides.append(argument)  # a boolean may stand without a value
        else:
            overrides.append(f"{argument}={ahead.pop(0)}")
    return ours, overrides


def _file_name(arguments: Sequence[str]) -> str:
    from olmo_jax.config import ConfigError

    names = [a.removeprefix("--config=") for a in arguments if a.startswith("--config=")]
    if len(names) != 1:
        raise ConfigError(f"give --config=FILE once (found {len(names)}), then its overrides as --config.key=value")
    return names[0]


def _override_keys(arguments: Sequence[str]) -> list[str]:
    return [m[1] for a in arguments if (m := re.match(r"--(?:no)?config\.([^=]+)", a))]


def _causes(error: BaseException) -> list[BaseException]:
    found = [error]
    while (following := found[-1].__cause__ or found[-1].__context__) is not None:
        found.append(following)
    return found


def _parser() -> argparse.ArgumentParser:
    verbs = "\n".join(f"  {verb:<10} {text}" for verb, text in _VERBS.items())
    parser = argparse.ArgumentParser(
        prog="olmo-jax",
        usage="olmo-jax VERB --config=FILE[:arg] [--config.a.b=value ...] --workdir=DIR\n"
        "       olmo-jax geometry PATH [--run=RUN_ID] [--step=N] [--tensors=REGEX] [--metrics=a,b]\n"
        "                              [--gauge=NORM] [--json]",
        description="Trains cohorts of small language models and asks what their geometry says.\n\nverbs:\n" + verbs,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="status, evaluate and report take the configuration from the working directory if --config isn't given.",
    )
    parser.add_argument("verb", choices=_VERBS, metavar="VERB", help="one of the above")
    parser.add_argument("--workdir", default="", metavar="DIR", help="where everything of the sweep lies")
    parser.add_argument("--json", action="store_true", help="plan and geometry: JSON alone on stdout")
    of_geometry = parser.add_argument_group("geometry")
    of_geometry.add_argument("path", nargs="?", metavar="PATH", help="the weights to measure")
    of_geometry.add_argument("--run", metavar="RUN_ID", help="this run of a working directory (default: every run)")
    of_geometry.add_argument("--step", type=int, metavar="N", help="checkpoints of this step (default: the last)")
    of_geometry.add_argument("--tensors", metavar="REGEX", help="which matrices, by name (default: embeddings, or all)")
    of_geometry.add_argument("--metrics", metavar="NAMES", help="what to measure, such as effective_rank,mean_cosine")
    of_geometry.add_argument(
        "--gauge",
        metavar="NORM",
        help="measure also less what the logits can't see behind this norm: none, layer_norm, affine_layer_norm, "
        "rms_norm (default: the model's norm for the unembedding of our own runs, else none)",
    )
    return parser


def _quiet() -> None:
    """Orbax and absl tell much at INFO that is no news to users; warnings and errors stay."""
    import logging

    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger("absl").setLevel(logging.WARNING)


def _fail(code: int, message: str) -> int:
    print(f"olmo-jax: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
