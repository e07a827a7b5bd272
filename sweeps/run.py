"""The stages of a sweep, each of which does what is left to do: prepare, train, evaluate, report."""

import contextlib
import importlib.metadata
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pandas as pd
from etils import epath

from eval import evaluate as evaluation
from olmo_jax.cohort import Cohort
from olmo_jax.config import TrainConfig, require
from olmo_jax.data.prepare import prepare
from olmo_jax.data.shards import TokenIndex
from olmo_jax.data.windows import epochs, too_few_tokens
from olmo_jax.progress import progress, say
from olmo_jax.train import check_vocabulary, train_cohort, write_run_files
from sweeps.findings import against_unigram, caveat, findings
from sweeps.plan import Plan, Sweep, check_record, write_record
from sweeps.report import write_report
from sweeps.table import build_table, read_curves, write_table

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Yields `stop()`, which answers True once SIGTERM or SIGINT has come; a second signal ends the process at once."""
    asked = threading.Event()

    def note(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        say(f"{signal.Signals(number).name}: writing a checkpoint, then leaving; once more to leave at once")

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def keep_compiled(workdir: epath.Path) -> None:
    """Compiled programs are kept in the working directory: cohorts share them, and a start after a stop finds them.

    A directory that jax was told of by JAX_COMPILATION_CACHE_DIR stays in use.
    """
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))


def data_root(workdir: epath.Path, config: TrainConfig) -> Path:
    """Where prepared data of a run lie: config.data.root, or data/ in the working directory."""
    return Path(config.data.root) if config.data.root else Path(workdir) / "data"


def prepare_all(workdir: epath.Path, plan: Plan) -> dict[str, TokenIndex]:
    """Prepares every data set of the plan; by data.name. Raises DataError, ConfigError: see data/prepare.py."""
    indexes = {}
    for name, config in plan.data.items():
        indexes[name] = prepare(config.data, data_root(workdir, config), say)
        check_vocabulary(config.model.vocab_size, indexes[name])
    return indexes


def begin(workdir: epath.Path, sweep: Sweep, plan: Plan) -> dict[str, TokenIndex]:
    """Everything that can be refused is refused here, before anything is trained: then the data, then sweep.json."""
    check_record(workdir, sweep, plan)
    indexes = prepare_all(workdir, plan)
    for cohort in plan.cohorts:
        _check_finetune_domain(sweep, cohort, indexes[cohort.shape.data_name])
    write_record(workdir, sweep, plan, versions())
    return indexes


def train_all(workdir: epath.Path, plan: Plan, indexes: dict[str, TokenIndex], stop: Callable[[], bool]) -> bool:
    """Trains what isn't trained; False if a signal ended it."""
    for cohort in plan.cohorts:
        write_run_files(workdir, cohort)
    for cohort in plan.cohorts:
        index = indexes[cohort.shape.data_name]
        tokens = max(run.config.tokens for run in cohort.runs)
        passes = epochs(index, cohort.shape.train_domains, cohort.shape.sequence_length, tokens)
        if passes > 1:
            say(f"{cohort.id}: its budget passes the training tokens {passes:.1f} times")
        if stop() or not train_cohort(workdir, cohort, index, stop):
            return False
    return True


def evaluate_all(
    workdir: epath.Path, plan: Plan, indexes: dict[str, TokenIndex], sweep: Sweep, stop: Callable[[], bool]
) -> bool:
    """Evaluates what isn't evaluated; False if a signal ended it."""
    config = sweep.evaluation
    todo = {cohort.id: evaluation.tasks(workdir, cohort, config) for cohort in plan.cohorts}
    total = sum(map(len, todo.values()))
    if not total:
        return True
    with progress("evaluate", total) as show:
        finished = 0

        def go_on(task: evaluation.Task) -> bool:
            nonlocal finished
            finished += 1
            show(finished, f"{task.evaluation} at step {task.step}")
            return not stop()

        for cohort in plan.cohorts:
            if not evaluation.evaluate(workdir, cohort, indexes[cohort.shape.data_name], config, go_on):
                return False
    return True


def report(workdir: epath.Path, command: str) -> tuple[epath.Path, pd.DataFrame]:
    """Writes results.parquet and report/index.html from what the directory holds, if it has changed since.

    Returns the page's path and the table.
    """
    table = build_table(workdir)
    require(not table.empty, "--workdir", str(workdir), "holds no checkpoint to report on; train first")
    page = workdir / "report" / "index.html"
    if not write_table(workdir, table) and page.exists():
        return page, table
    facts = {"command": command, "written": time.strftime("%Y-%m-%d %H:%M:%S %Z")} | versions()
    return write_report(workdir / "report", table, read_curves(workdir), facts), table


def run(workdir: epath.Path, sweep: Sweep, plan: Plan, stop: Callable[[], bool], command: str) -> bool:
    """All stages; what is done is not done again. False if a signal ended it."""
    indexes = begin(workdir, sweep, plan)
    if not train_all(workdir, plan, indexes, stop) or not evaluate_all(workdir, plan, indexes, sweep, stop):
        return False
    page, table = report(workdir, command)
    for sentence in (*findings(table), against_unigram(table), caveat(table)):
        print(sentence)
    print(f"Report: {page}")
    return True


def versions() -> dict[str, str]:
    """What the numbers were made with: this code's version and commit, Python, and the packages that compute."""
    found = {"olmo-jax": _code_version(), "python": sys.version.split()[0]}
    return found | {name: importlib.metadata.version(name) for name in _PACKAGES}


def _code_version() -> str:
    version = importlib.metadata.version("olmo-jax")
    here = Path(__file__).parent
    git = subprocess.run(
        ["git", "-C", str(here), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return f"{version} ({git.stdout.strip()})" if git.returncode == 0 else version


def _check_finetune_domain(sweep: Sweep, cohort: Cohort, index: TokenIndex) -> None:
    domain, key = sweep.evaluation.finetune.domain, "config.evaluation.finetune.domain"
    if domain:
        known = ", ".join(index.domains)
        require(domain in index.domains, key, domain, f"isn't in the data, which have {known}; '' leaves it out")
        lack = too_few_tokens(index, (domain,), cohort.shape.sequence_length)
        require(not lack, key, domain, lack)
