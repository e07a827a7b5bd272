"""A working directory that earlier code wrote (commit 77f4818, layout 4) is resumed by the current code.

It holds two cohorts of two runs: one trained and evaluated but for fine-tuning's place, one stopped at step 4 of 16.
"""

import dataclasses
import json
import pathlib
import shutil
import tarfile

import pandas as pd
import pytest
from etils import epath

from olmo_jax import config as configs
from olmo_jax.config.field import Role, setting
from olmo_jax.config.identity import identity_fields
from olmo_jax.logs.metrics import last_row, read_jsonl
from sweeps import cli
from sweeps.planning import plan as plans
from sweeps.planning import record as records
from sweeps.planning import upgrades
from sweeps.planning.config_file import load_config

# Its configuration imports modules by the names that they had.
pytestmark = pytest.mark.filterwarnings("ignore:sweeps.* has moved to sweeps.*:FutureWarning")

ARCHIVE = pathlib.Path(__file__).parent / "data" / "layout4.tar.xz"
FINISHED = ("old-f4ea3a2f8aa8", "old-11d5d7f8160d")
STOPPED = ("old-f7301f1f359d", "old-c41978b9069f")
COHORTS = {"d8-l1-b4-10a54ef7", "d8-l1-b2-c375f155"}


@pytest.fixture
def old(tmp_path, monkeypatch):
    """Copy it, with its text and configuration, into the current folder."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def add_field(monkeypatch, kind, name, default, role=Role.STATIC, **metadata):
    """Gives a configuration a field, as a later version of its class would have it."""
    monkeypatch.setitem(kind.__annotations__, name, type(default))
    for field in dataclasses.fields(kind):
        declaration = dataclasses.field(default=field.default, metadata=field.metadata)
        monkeypatch.setattr(kind, field.name, declaration, raising=False)
    monkeypatch.setattr(kind, name, setting(default, role, "What is new.", **metadata), raising=False)
    for generated in ("__init__", "__eq__", "__hash__", "__repr__", "__setattr__", "__delattr__", "__match_args__",
                      "__dataclass_fields__", "__dataclass_params__"):  # fmt: skip
        monkeypatch.delattr(kind, generated)
    dataclasses.dataclass(frozen=True)(kind)
    for field in dataclasses.fields(configs.TrainConfig):  # the default section is an instance of the class as it was
        if isinstance(field.default, kind):
            monkeypatch.setattr(configs.TrainConfig.__dataclass_fields__[field.name], "default", kind())


def ids(*overrides, arg=""):
    plan = plans.resolve(plans.read_sweep(load_config([f"--config=small.py{arg}", *overrides])))
    return {cohort.id for cohort in plan.cohorts}, {run.id for run in plan.runs}


def test_run_ids_match_those_of_earlier_versions(old):
    assert ids() == (COHORTS, {*FINISHED, *STOPPED})


@pytest.mark.parametrize("metadata", [{}, {"neutral": 0.5}])
@pytest.mark.parametrize(
    "section, role",
    [
        ("model", Role.STATIC),
        ("optimizer", Role.TRACED),
        ("optimizer", Role.STATIC),
        ("probe", Role.OBSERVATION),
        ("compute", Role.EXECUTION),
    ],
)
def test_a_new_field_changes_ids_only_of_runs_that_set_it(old, monkeypatch, section, role, metadata):
    kind = type(getattr(configs.TrainConfig(), section))
    add_field(monkeypatch, kind, "new_option", 0.5, role, **metadata)
    assert "new_option" not in identity_fields(kind())
    assert ids() == (COHORTS, {*FINISHED, *STOPPED})
    cohorts, runs = ids(f"--config.train.{section}.new_option=0.25")
    assert (runs == {*FINISHED, *STOPPED}) == (role in (Role.OBSERVATION, Role.EXECUTION)), "it reaches no parameter"
    assert (cohorts == COHORTS) == (role in (Role.TRACED, Role.EXECUTION)), "members differ in it, or starts do"


def test_a_non_neutral_default_enters_the_ids(old, monkeypatch):
    """A field whose default isn't its neutral value changes the runs, so it has to change their ids."""
    add_field(monkeypatch, configs.ModelConfig, "new_option", 0.5, neutral=0.0)
    assert not ids()[1] & {*FINISHED, *STOPPED}
    assert ids("--config.train.model.new_option=0.0") == (COHORTS, {*FINISHED, *STOPPED})


@pytest.mark.slow
def test_a_working_directory_of_earlier_code_resumes(old, monkeypatch, capsys):
    """Status, evaluate, report, resume and a larger grid, all under ids assigned before the field existed."""
    add_field(monkeypatch, configs.ModelConfig, "new_option", 0.5)
    before = {p: p.read_bytes() for p in pathlib.Path("work/runs").rglob("*.json*") if p.parent.name in FINISHED}

    def run(*arguments):
        code = cli.main([*arguments, "--workdir=work"])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    assert run("status").count("done") == 2
    run("evaluate", "--only=lm_loss", f"--runs={FINISHED[0]}")
    assert set(pd.read_parquet(_reported(run))["run_id"]) == {*FINISHED, *STOPPED}
    run("train", "--config=small.py")
    out = run("status")
    assert out.count("done") == 4
    assert {p.name for p in pathlib.Path("work/cohorts").iterdir() if p.is_dir()} == COHORTS
    assert all(p.read_bytes() == content for p, content in before.items()), "what is done stays as it is"

    run("train", "--config=small.py:larger")
    assert {*FINISHED, *STOPPED} < {p.name for p in pathlib.Path("work/runs").iterdir()}
    stacks = {p.name for p in pathlib.Path("work/cohorts").iterdir() if p.is_dir()}
    assert stacks == COHORTS | {f"{cohort}.1" for cohort in COHORTS}


def _reported(run):
    run("report")
    return "work/results.parquet"


def test_recorded_ids_stay_valid_if_the_identity_changes(old, monkeypatch):
    workdir = epath.Path("work").absolute()

    def run_id(config, fingerprint):
        return f"{config.name}-otherwise-{config.init_seed}-{config.data.batch_size}"

    monkeypatch.setattr("sweeps.planning.plan.run_id", run_id)
    monkeypatch.setattr("olmo_jax.cohort.digest", lambda value: "otherwise")
    plan = plans.resolve(plans.read_sweep(load_config(["--config=small.py:larger"])))
    assert len(plan.runs) == 6
    joined = records.join(workdir, plan)
    assert {run.id for run in joined.runs} > {*FINISHED, *STOPPED}
    assert {cohort.id for cohort in joined.cohorts} == COHORTS
    assert sum("otherwise" in run.id for run in joined.runs) == 2


def test_any_verb_upgrades_an_earlier_layout_and_keeps_a_copy(old, monkeypatch, capsys):
    as_it_was = pathlib.Path("work/sweep.json").read_bytes()

    def to_5(workdir, record):
        return record | {"made_by": record["versions"]["olmo-jax"]}

    monkeypatch.setattr(upgrades, "LAYOUT", 6)
    monkeypatch.setattr(upgrades, "UPGRADES", {4: to_5, 5: lambda workdir, record: record})
    assert cli.main(["status", "--workdir=work"]) == 0
    assert "upgraded from layout 4 to 6; the former file is kept as sweep.json.layout-4" in capsys.readouterr().err
    record = json.loads(pathlib.Path("work/sweep.json").read_text())
    assert (record["layout"], record["made_by"]) == (6, "0.1.0 (77f4818)")
    assert pathlib.Path("work/sweep.json.layout-4").read_bytes() == as_it_was
    assert cli.main(["status", "--workdir=work"]) == 0
    assert "upgraded" not in capsys.readouterr().err


def test_an_unsupported_layout_is_refused_with_the_commit_that_reads_it(old, capsys):
    path = pathlib.Path("work/sweep.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layout": 3}))
    assert cli.main(["status", "--workdir=work"]) == 2
    assert "has layout 3" in (err := capsys.readouterr().err)
    assert "use the commit that wrote it: 0.1.0 (77f4818)" in err


@pytest.mark.slow
def test_reconstructible_files_are_restored(old, capsys):
    """After a power cut: files that are empty, or filled with NUL up to their length."""
    status, config = (pathlib.Path("work/runs") / FINISHED[0] / name for name in ("status.json", "config.json"))
    result = pathlib.Path("work/runs") / FINISHED[1] / "results" / "lm_loss@8.json"
    metrics = pathlib.Path("work/runs") / FINISHED[1] / "metrics.jsonl"
    as_it_was = {path: path.read_bytes() for path in (status, config, result, metrics)}
    status.write_bytes(b"")
    config.write_bytes(b"\0" * len(as_it_was[config]))
    result.write_bytes(b"\0" * len(as_it_was[result]))
    metrics.write_bytes(as_it_was[metrics] + b"\0" * 100)
    (pathlib.Path("work/cohorts") / "d8-l1-b4-10a54ef7" / "lock.json").write_bytes(b"")

    assert cli.main(["status", "--workdir=work"]) == 0
    out, err = capsys.readouterr()
    assert out.count("done") == 2
    assert err == ""
    before, after = (plans.leaves(json.loads(content)) for content in (as_it_was[config], config.read_bytes()))
    assert {key: after[key] for key in before} == before
    assert cli.main(["report", "--workdir=work"]) == 0
    assert "damaged results are left out: lm_loss; `olmo-jax evaluate` makes them again" in capsys.readouterr().err
    assert cli.main(["run", "--config=small.py", "--workdir=work"]) == 0
    assert json.loads(status.read_bytes()) == json.loads(as_it_was[status])
    original, recomputed = json.loads(as_it_was[result]), json.loads(result.read_bytes())
    assert recomputed["metrics"] == pytest.approx(original["metrics"], rel=1e-3)  # computed by a different program
    assert [row["step"] for row in read_jsonl(epath.Path(metrics))] == list(range(9)), "without the tail"


@pytest.mark.parametrize(
    ("line", "complete_rows"),
    [(b"\0" * 50, 9), (b'{"step": 9, "lo', 9), (b'{"step": 9, "loss": 1.5}\n', 10), (b"\xff\xfe\n", 9), (b"[1]\n", 9)],
)
def test_an_incomplete_last_line_is_truncated(old, line, complete_rows):
    path = epath.Path("work/runs") / FINISHED[0] / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + line)
    assert len(read_jsonl(path)) == complete_rows
    assert last_row(path)["step"] == complete_rows - 1


def test_damage_inside_the_metrics_is_reported(old, capsys):
    path = pathlib.Path("work/runs") / FINISHED[0] / "metrics.jsonl"
    rows = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*rows[:3], b"\0" * len(rows[3]), *rows[4:]]))
    assert cli.main(["report", "--workdir=work"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "metrics.jsonl: line 4 is damaged; put the file back from a copy" in line


@pytest.mark.parametrize("name", ["lr[1e-2]", "lr*", "what?"])
def test_a_working_directory_named_like_a_pattern_is_refused_for_training(old, name, capsys):
    assert cli.main(["train", "--config=small.py", f"--workdir={name}"]) == 2
    assert f"{name}': Orbax can't read checkpoints below a folder with *, ? or [" in capsys.readouterr().err
    assert not pathlib.Path(name).exists()


@pytest.mark.slow
def test_a_finished_sweep_in_a_folder_with_brackets_is_read(old):
    name = "lr[1e-2]"
    shutil.move("work", name)
    for verb in (["status"], ["evaluate", "--only=unigram"], ["report"], ["generate", FINISHED[0], "--prompt=the"]):
        assert cli.main([*verb, f"--workdir={name}"]) == 0, verb
    assert cli.main(["geometry", name, f"--run={FINISHED[0]}", "--metrics=effective_rank"]) == 0
    assert {"lm_loss/macro", "unigram/macro"} <= {*pd.read_parquet(f"{name}/results.parquet")}
