"""The command line: olmo-jax VERB [arguments]; arguments.py defines its arguments.

Exit codes: 0 done, 1 failed, 2 bad usage or configuration, 75 stopped by a signal after a checkpoint (run it again).
Heavy modules are imported only by the verbs that need them, so that --help answers at once.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from olmo_jax.console import say, shortened
from olmo_jax.errors import UserError
from sweeps.arguments import parse
from sweeps.streams import finish_stdout, reader_left, take_any_text

DONE, FAILED, BAD, STOPPED = 0, 1, 2, 75


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command and return its exit code; one line on stderr says what went wrong."""
    argv = sys.argv[1:] if argv is None else list(argv)
    take_any_text()
    try:
        with _sigterm_as_sigint():
            code = _exit_code(argv)
            finish_stdout()
            return code
    except KeyboardInterrupt:
        return _fail(STOPPED, "stopped immediately; run the same command again to resume")
    except OSError as error:
        return _fail(FAILED, f"standard output: {error.strerror or error}")


def _exit_code(argv: Sequence[str]) -> int:
    """Carry out the command; errors that users can fix become one line and an exit code, bugs keep their traceback."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    arguments = argparse.Namespace()
    try:
        arguments, overrides = parse(argv)
        _quiet()
        command = "olmo-jax " + shlex.join(argv)
        # Reports and tables show the command in UTF-8; a file's name may hold bytes that aren't.
        return _carry_out(arguments, overrides, command.encode(errors="backslashreplace").decode())
    except SystemExit as error:  # --help
        return int(error.code or 0)
    except UserError as error:
        return _fail(error.exit_code, str(error), lines=error.lines)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and reader_left():  # verbs print after their work is done
            return DONE
        place = error.filename or getattr(arguments, "workdir", "") or getattr(arguments, "path", "")
        place = os.fsdecode(place) if isinstance(place, bytes) else place
        return _fail(FAILED, ": ".join(str(part) for part in (place, error.strerror or error) if part != ""))
    except MemoryError as error:
        return _fail(
            FAILED,
            f"not enough memory: {str(error) or 'none is left'}; process less at a time, or use a larger machine",
        )


@contextlib.contextmanager
def _sigterm_as_sigint() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, as SIGINT does, wherever a stage doesn't handle it itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _carry_out(arguments: argparse.Namespace, overrides: list[str], command: str) -> int:
    without_config = {"geometry": _geometry, "generate": _generate, "export": _export, "config": _config}
    if arguments.verb in without_config:
        return without_config[arguments.verb](arguments)
    if arguments.verb == "import":
        return _import(arguments, overrides, command)
    if arguments.verb == "compare":
        return _compare(arguments, command)
    return _stage(arguments, overrides, command)


def _stage(arguments: argparse.Namespace, overrides: list[str], command: str) -> int:
    from sweeps.planning import plan as plans
    from sweeps.planning import record as records
    from sweeps.planning.config_file import load_config, override_evaluation

    verb, workdir = arguments.verb, _workdir(arguments)
    if hosts := getattr(arguments, "hosts", ""):
        from olmo_jax.execution import processes

        processes.initialize(hosts)
    if mirror := getattr(arguments, "mirror", "") if verb != "launch" else "":
        from sweeps.remote.mirror import fetch

        fetch(mirror, workdir)
    if overrides and (verb != "evaluate" or any(o.startswith("--config=") for o in overrides)):
        plan = plans.resolve(plans.read_sweep(load_config(overrides)))
    else:
        plan = records.recorded_plan(workdir)
        if overrides:
            evaluation = override_evaluation(plan.evaluation, overrides)
            plan = dataclasses.replace(plan, evaluation=evaluation)
    if verb == "plan":
        print(json.dumps(plans.as_json(plan)) if arguments.json else "\n".join(_plan_lines(arguments, plan)))
        return DONE
    if verb == "status":
        from sweeps.running.status import show

        plan = records.join(workdir, plan)
        records.restore_run_files(workdir)
        show(workdir, records.with_stacks(workdir, plan), arguments.watch)
        return DONE
    if verb == "report":
        from sweeps.report import stage

        records.join(workdir, plan)  # raises where the plan doesn't fit the directory
        records.restore_run_files(workdir)
        if arguments.figure:
            print("\n".join(map(str, stage.report_figure(workdir, arguments.figure))))
        else:
            print(f"Report: {stage.report(workdir, command)[0]}")
        return DONE
    if verb == "launch":
        return _launch(arguments, overrides, plan)
    from sweeps.remote.mirror import mirrored
    from sweeps.running import stages

    if verb == "prepare":
        stages.prepare_all(workdir, plan)
        return DONE
    stages.keep_compiled(workdir)
    with stages.stop_on_signals() as stop, mirrored(workdir, mirror):
        if verb == "run":
            completed = stages.run(workdir, plan, stop, command, arguments.profile, arguments.cohort)
        else:
            plan, indexes = stages.begin(workdir, plan, to_train=verb == "train")
            if verb == "train":
                completed = stages.train_all(workdir, plan, indexes, stop, arguments.profile)
            else:
                from eval.evaluate import Choice

                choice = Choice(arguments.only, arguments.runs, arguments.steps)
                completed = stages.evaluate_all(workdir, plan, indexes, stop, choice)
    return DONE if completed else STOPPED


def _launch(arguments: argparse.Namespace, overrides: list[str], plan: Any) -> int:
    from olmo_jax.checkpoint import check_place
    from sweeps.planning import record as records
    from sweeps.remote.launch import StoppedError, launch
    from sweeps.remote.options import Options

    workdir = _workdir(arguments)
    check_place(workdir)
    plan = records.join(workdir, plan)
    values = {name: getattr(arguments, name) for name in Options.__dataclass_fields__}
    options = Options(**{k: v for k, v in values.items() if v is not None} | {"more": tuple(arguments.more)})
    command = [sys.executable, "-m", "sweeps.cli", "run", *overrides, f"--workdir={workdir}"]
    command += [f"--mirror={arguments.mirror}"] if arguments.mirror else []
    try:
        print("\n".join(launch(workdir, command, range(len(plan.cohorts)), options)))
    except StoppedError as error:
        return _fail(STOPPED, str(error))
    return DONE


def _plan_lines(arguments: argparse.Namespace, plan: Any) -> list[str]:
    from olmo_jax.checkpoint import check_place
    from olmo_jax.config import require
    from olmo_jax.logs.timing import matmul_peak
    from sweeps.planning import costs
    from sweeps.planning import record as records
    from sweeps.running import stages

    rate, source = arguments.flops, "as stated"
    if rate is None:
        rate, source = matmul_peak(plan.runs[0].config.model.compute_dtype), "the matmul peak measured here: at least"
    require(rate > 0, "--flops", rate, "needs a positive number")
    workdir = _workdir(arguments) if arguments.workdir else None
    if workdir is not None:
        check_place(workdir)
        plan = records.join(workdir, plan)
        plan = records.with_stacks(workdir, plan)
    return costs.lines(plan, stages.training_tokens(workdir, plan), rate, source)


def _geometry(arguments: argparse.Namespace) -> int:
    from sweeps.models import geometry

    metrics = geometry.DEFAULT_METRICS if arguments.metrics is None else arguments.metrics.split(",")
    rows = geometry.measure(arguments.path, arguments.run, arguments.step, arguments.tensors, metrics, arguments.gauge)
    if arguments.json:
        print(json.dumps(geometry.as_json(arguments.path, rows), allow_nan=False))
    else:
        print("\n".join(geometry.lines(rows)))
    return DONE


def _config(arguments: argparse.Namespace) -> int:
    from sweeps.planning import reference

    print("\n".join(reference.lines(arguments.part)))
    return DONE


def _generate(arguments: argparse.Namespace) -> int:
    from sweeps.models.generate import Sampling, continuations

    sampling = Sampling(**{name: getattr(arguments, name) for name in Sampling._fields})
    workdir = _workdir(arguments) if arguments.workdir else None
    results = continuations(arguments.run, arguments.prompt, sampling, workdir, arguments.step)
    if arguments.json:
        print(json.dumps({"prompt": arguments.prompt, "continuations": [result._asdict() for result in results]}))
        return DONE
    for result in results:
        print(f"{result.run}{'' if result.step is None else f' at step {result.step}'}:")
        print("\n".join(f"  {arguments.prompt}|{text}" for text in result.texts))
    return DONE


def _export(arguments: argparse.Namespace) -> int:
    from sweeps.models.export_run import export_run

    shard = arguments.shard_mb * 1e6
    architecture = export_run(_workdir(arguments), arguments.run, arguments.to, arguments.step, arguments.dtype, shard)
    print(f"{arguments.to}: {architecture}, {arguments.dtype}")
    return DONE


def _compare(arguments: argparse.Namespace, command: str) -> int:
    from sweeps.report.compare import write_comparison

    print("\n".join(write_comparison(arguments.workdirs, arguments.to, arguments.pair_by or None, command)))
    return DONE


def _import(arguments: argparse.Namespace, overrides: list[str], command: str) -> int:
    from olmo_jax.config import ConfigError
    from olmo_jax.hf import published
    from sweeps.configs import imported
    from sweeps.models.import_run import import_run
    from sweeps.planning.config_file import load_config, override_keys
    from sweeps.running import stages

    for key in override_keys(overrides):
        if re.match(r"(train\.)?(model|optimizer|tokens|name|checkpoint|init_seed|data_seed)\b|grid\b", key):
            raise ConfigError(f"--config.{key}: doesn't apply to an imported run; its model is trained already")
    names_file = any(override.startswith("--config=") for override in overrides)
    keep_evaluation = not names_file and not any(key.startswith("evaluation") for key in override_keys(overrides))
    config = load_config(overrides if names_file else [f"--config={imported.__file__}", *overrides])
    workdir = _workdir(arguments)
    path, name = arguments.path, arguments.name
    if path in published.MODELS:
        path, name = published.fetch(path, arguments.accept_license), name or path
    stages.keep_compiled(workdir)
    print(import_run(workdir, path, config, name, arguments.step, keep_evaluation))
    if not arguments.run:
        return DONE
    with stages.stop_on_signals() as stop:
        return DONE if stages.run_imported(workdir, stop, command) else STOPPED


def _workdir(arguments: argparse.Namespace) -> Any:
    """Return the folder of --workdir, which may not exist yet. Raises ConfigError if it can't be a folder."""
    from etils import epath

    from olmo_jax.config import require

    text = arguments.workdir
    require("://" not in text, "--workdir", text, "needs a folder; --mirror=URL copies it to an object store")
    invalid = re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", text)  # a byte that isn't UTF-8 is a surrogate
    require(not invalid, "--workdir", text, "needs a name in UTF-8, without control characters")
    path = epath.Path(os.path.abspath(text))
    existing = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    what = "is a file" if os.path.exists(existing) else "is a broken link"
    require(os.path.isdir(existing), "--workdir", text, f"{existing} {what}; name a folder")
    return path


def _quiet() -> None:
    """Drop what Orbax and absl log at INFO; warnings and errors stay, shortened to lines of usual length."""
    import logging

    from absl import logging as absl_logging

    sys.unraisablehook = _without_abandoned_reads
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger("absl").setLevel(logging.WARNING)
    logging.getLogger("absl").addFilter(_shorten)


def _shorten(record: Any) -> bool:
    try:
        record.msg, record.args = shortened(record.getMessage()), ()
    except (TypeError, ValueError):  # a message that doesn't fit its arguments: logging reports that itself
        return True
    return True


def _without_abandoned_reads(unraisable: "sys.UnraisableHookArgs") -> None:
    """Drop the errors that Orbax's pending reads report after one read has failed and their event loop is closed."""
    if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(unraisable)


def _fail(code: int, message: str, lines: bool = False) -> int:
    """Print the message, joined into one line unless `lines` is set, and return the code."""
    say(f"olmo-jax: {message if lines else ' '.join(filter(None, map(str.strip, message.splitlines())))}")
    return code


if __name__ == "__main__":
    sys.exit(main())
