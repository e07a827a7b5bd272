"""Tasks of a sweep on local processes, on a Slurm started by the test, and as a SkyPilot file."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml

from olmo_jax.config import ConfigError
from sweeps.remote.launch import LaunchError, launch
from sweeps.remote.options import Options
from sweeps.remote.slurm import conflicting_variables
from tests.sweeps.remote import slurm
from tests.sweeps.running.test_interruption import CONFIG

# Counts to `steps` by a file that outlives it, and notes each step and each signal; leaves with 75 when asked to. Where
# there is a file `meet` it waits for a second cohort to begin, up to half a minute.
STUB = """
import os, pathlib, signal, sys, time
folder, steps, seconds = pathlib.Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
cohort = sys.argv[-1].removeprefix("--cohort=")
count, notes, asked = folder / f"count-{cohort}", open(folder / f"notes-{cohort}", "a"), []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: asked.append(signal.Signals(number).name))
def note(text):
    print(f"{time.time():.3f} {text}", file=notes, flush=True)
note("start")
for _ in range(600):
    if (folder / "meet").exists() and len(list(folder.glob("notes-*"))) < 2:
        time.sleep(0.05)
done = int(count.read_text()) if count.exists() else 0
for step in range(done, steps):
    time.sleep(seconds)
    if (folder / f"fail-{cohort}").exists():
        sys.exit("the stub fails")
    note(f"step {step}")
    count.write_text(str(step + 1))
    stop = folder / f"stop-{cohort}"
    if stop.exists():
        stop.unlink()
        sys.exit(75)
    if asked:
        note(",".join(asked))
        sys.exit(75)
note("end")
"""


@pytest.fixture
def stub(tmp_path):
    """`stub(steps, seconds)`: the command of a stub task that runs in tmp_path."""
    pytest.importorskip("submitit")
    path = tmp_path / "stub.py"
    path.write_text(STUB)
    return lambda steps, seconds=0.0: [sys.executable, str(path), str(tmp_path), str(steps), str(seconds)]


def notes(folder, cohort):
    """Return what the stub of a cohort recorded, without times."""
    path = folder / f"notes-{cohort}"
    return [line.split(" ", 1)[1] for line in path.read_text().splitlines()] if path.exists() else []


def passages(folder, cohort):
    return [text for text in notes(folder, cohort) if not text.startswith("step ")]


def steps(folder, cohort):
    return [int(text.removeprefix("step ")) for text in notes(folder, cohort) if text.startswith("step ")]


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_at_most_parallel_cohorts_run_at_once(stub, tmp_path):
    (tmp_path / "meet").touch()
    lines = launch(tmp_path, stub(1, 0.5), range(3), Options("local", parallel=2))
    assert [line.split(",")[0] for line in lines[:3]] == [f"cohort {k}: done" for k in range(3)]
    assert f"olmo-jax status --workdir={tmp_path} --watch" in lines[3]
    events = []
    for cohort in range(3):
        times = [float(line.split()[0]) for line in (tmp_path / f"notes-{cohort}").read_text().splitlines()]
        events += [(times[0], 1), (times[-1], -1)]
    at_once = [sum(change for _, change in sorted(events)[: i + 1]) for i in range(len(events))]
    assert max(at_once) == 2


def times(folder, cohort):
    """Return when the stub of a cohort started and ended."""
    lines = (folder / f"notes-{cohort}").read_text().splitlines()
    return float(lines[0].split()[0]), float(lines[-1].split()[0])


def test_branches_start_once_the_cohorts_of_their_parents_are_done(stub, tmp_path):
    lines = launch(tmp_path, stub(1, 0.5), range(3), Options("local", parallel=0), depths=(1, 0, 1))
    assert [line.split(",")[0] for line in lines[:3]] == [f"cohort {k}: done" for k in (1, 0, 2)]
    assert times(tmp_path, 1)[1] <= min(times(tmp_path, 0)[0], times(tmp_path, 2)[0])


def test_stopped_tasks_restart_and_failed_ones_are_named_while_others_continue(stub, tmp_path, capsys):
    (tmp_path / "stop-0").touch()
    (tmp_path / "fail-1").touch()
    with pytest.raises(LaunchError, match="1 of 3 cohorts failed") as error:
        launch(tmp_path, stub(2), range(3), Options("local", parallel=3))
    log = tmp_path / "launch" / "cohort-1.log"
    assert f"cohort 1: failed, log {log}; the stub fails" in str(error.value)
    assert "the stub fails" in log.read_text()
    assert notes(tmp_path, 0) == ["start", "step 0", "start", "step 1", "end"]
    assert notes(tmp_path, 2)[-1] == "end"
    assert "cohort 2: done" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_asks_tasks_to_stop_once_and_waits_for_them(stub, tmp_path, number):
    """SIGINT is sent to the whole process group, as a terminal does."""
    program = (
        "import sys; from sweeps.remote.launch import *\n"
        f"try: launch({str(tmp_path)!r}, {stub(400, 0.05)!r}, range(3), Options('local', parallel=2))\n"
        "except StoppedError: sys.exit(75)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    wait_until(lambda: steps(tmp_path, 0) and steps(tmp_path, 1))
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    assert process.wait(timeout=30) == 75
    for cohort in (0, 1):
        assert notes(tmp_path, cohort)[-1] == "SIGTERM"
    assert not notes(tmp_path, 2), "what hadn't begun doesn't"
    launch(tmp_path, stub(max(*steps(tmp_path, 0), *steps(tmp_path, 1)) + 5), range(3), Options("local", parallel=3))
    for cohort in range(3):
        assert steps(tmp_path, cohort) == list(range(len(steps(tmp_path, cohort)))), "no step is lost or done twice"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options("kubernetes"), "--engine = 'kubernetes': needs one of slurm, local, sky"),
        (Options("slurm", minutes=0), "--minutes = 0: needs 10 or more"),
        (Options("slurm", gpus=-1), "--gpus = -1: needs 0 or more"),
        (Options("local", partition="gpu"), "--partition = 'gpu': has no effect with --engine=local"),
        (Options("slurm", more=("=h100",)), "--more = '=h100': needs key=value"),
        (Options("slurm", more=("array=0-9",)), "--more = 'array=0-9': is set by launch itself"),
        (Options("slurm", more=("open_mode=append",)), "--more = 'open_mode=append': is set by launch itself"),
        (Options("sky", more=("infra=",)), "--more = 'infra=': needs key=value"),
    ],
)
def test_invalid_launch_options_are_refused(options, message):
    with pytest.raises(ConfigError) as error:
        options.check()
    assert str(error.value).startswith(message)


def test_a_missing_engine_is_named_with_the_remedy(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="no sbatch on PATH.*--engine=local"):
        launch(tmp_path, ["true"], [0], Options("slurm"))
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match="--engine=slurm: submitit is not installed; pip install 'olmo-jax"):
        launch(tmp_path, ["true"], [0], Options("slurm"))
    with pytest.raises(ConfigError, match="--workdir = 'gs://bucket/x': needs a directory"):
        launch("gs://bucket/x", ["true"], [0], Options("local"))


def test_the_skypilot_task_runs_any_cohort_from_the_repository(tmp_path, monkeypatch):
    root = pathlib.Path(__file__).parents[3]
    monkeypatch.chdir(root)
    command = [sys.executable, "-m", "sweeps.cli", "run", f"--config={root}/a.py", "--workdir=w", "--mirror=gs://b/w"]
    options = Options("sky", gpus=2, cpus=8, more=("accelerators=H100", "infra=gcp", "use_spot=false"))
    lines = launch(tmp_path, command, [0, 1], options)
    assert any("for K in 0 1; do sky jobs launch" in line for line in lines)
    loops = [line for line in launch(tmp_path, command, [0, 1, 2], options, (1, 0, 1)) if line.startswith("for K")]
    assert [loop.split(";")[0] for loop in loops] == ["for K in 1", "for K in 0 2"]
    task = yaml.safe_load((tmp_path / "launch" / "sky.yaml").read_text())
    assert task["run"].split("sweeps.cli ")[1] == 'run --config=a.py --workdir=w --mirror=gs://b/w --cohort="$COHORT"\n'
    assert task["resources"]["accelerators"] == "H100:2"
    assert task["resources"]["cpus"] == "8+"
    assert task["resources"]["use_spot"] is False
    assert task["envs"] == {"COHORT": "0"}
    assert "make setup" in task["setup"]
    with pytest.raises(ConfigError, match="--gpus = 1: needs the kind of GPU"):
        launch(tmp_path, command, [0], Options("sky", gpus=1))
    with pytest.raises(ConfigError, match="lies outside"):
        launch(tmp_path, ["python", "--config=/elsewhere/a.py"], [0], Options("sky"))


SBATCH = """#!/bin/sh
env > "$RECORD/environment"
cp "$1" "$RECORD/script"
echo Submitted batch job 17
"""
OUTER_JOB = {
    "SLURM_JOB_ID": "4",
    "SLURM_MEM_PER_CPU": "1000",
    "SLURM_CPUS_PER_TASK": "3",
    "SLURM_CPU_BIND": "quiet,mask_cpu:0x7",
    "SLURM_TRES_PER_TASK": "cpu:3",
    "SLURMD_NODENAME": "one",
    "SRUN_CPUS_PER_TASK": "3",
    "SBATCH_EXCLUSIVE": "1",
    "SBATCH_MEM_BIND": "local",
}
OF_THE_USER = {"SLURM_CONF": "/etc/slurm.conf", "SBATCH_ACCOUNT": "me", "SBATCH_PARTITION": "gpu", "SBATCH_QOS": "low"}


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """A stand-in for sbatch: `sbatch(workdir, **options)` launches two cohorts, and returns its script's options, its
    environment and its script."""
    pytest.importorskip("submitit")
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("sbatch", "srun"):
        (programs / name).write_text(SBATCH)
        (programs / name).chmod(0o755)
    for name in [name for name in os.environ if name.startswith(("SLURM", "SBATCH_", "SRUN_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setenv("RECORD", str(programs))

    def submitted(workdir=tmp_path / "w", cohorts=2, **options):
        lines = launch(workdir, ["true"], range(cohorts), Options("slurm", **options))
        assert lines[0].startswith("cohort 0: Slurm job 17")
        script = (programs / "script").read_text()
        given = dict(re.findall(r"#SBATCH --([\w-]+)(?:=(.*))?", script))
        environment = dict(line.split("=", 1) for line in (programs / "environment").read_text().splitlines())
        return given, environment, script

    return submitted


def test_variables_of_an_enclosing_slurm_job_are_hidden_from_sbatch(sbatch, monkeypatch, capsys):
    for name, value in (OUTER_JOB | OF_THE_USER).items():
        monkeypatch.setenv(name, value)
    _, observed, _ = sbatch()
    assert not OUTER_JOB.keys() & observed.keys()
    assert {name: observed[name] for name in OF_THE_USER} == OF_THE_USER
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hidden from sbatch")]
    assert line.endswith(": " + ", ".join(sorted(OUTER_JOB)))
    assert os.environ["SLURM_JOB_ID"] == "4", "this process is still in its job"


def test_an_sbatch_reply_without_a_job_id_is_reported(sbatch, tmp_path):
    (tmp_path / "programs" / "sbatch").write_text("#!/bin/sh\necho queue is closed\n")
    with pytest.raises(LaunchError, match="queue is closed"):
        launch(tmp_path / "w", ["true"], range(2), Options("slurm"))


def test_the_engine_local_runs_inside_a_slurm_job(stub, tmp_path, monkeypatch):
    for name, value in OUTER_JOB.items():
        monkeypatch.setenv(name, value)
    assert launch(tmp_path, stub(1), [0], Options("local"))[0].startswith("cohort 0: done")


@pytest.mark.parametrize(
    ("environment", "options", "conflicts"),
    [
        ("SBATCH_EXCLUSIVE SBATCH_TIMELIMIT SBATCH_MEM_PER_CPU SLURM_CPU_BIND", "", ""),
        ("SBATCH_TIMELIMIT", "time", "SBATCH_TIMELIMIT"),
        ("SBATCH_MEM_PER_CPU SLURM_MEM_PER_GPU SBATCH_GRES", "mem", "SBATCH_MEM_PER_CPU SLURM_MEM_PER_GPU"),
        ("SBATCH_PARTITION SBATCH_ACCOUNT", "partition", "SBATCH_PARTITION"),
        ("SBATCH_GPUS SBATCH_GPUS_PER_TASK", "gpus-per-node", "SBATCH_GPUS SBATCH_GPUS_PER_TASK"),
        ("SBATCH_OUTPUT SBATCH_NO_REQUEUE SBATCH_ARRAY_INX SBATCH_WAIT SLURM_WAIT", "",
         "SBATCH_ARRAY_INX SBATCH_NO_REQUEUE SBATCH_OUTPUT SBATCH_WAIT"),
        ("PATH SLURM_JOB_ID SLURM_NTASKS", "", "SLURM_JOB_ID SLURM_NTASKS"),
        ("SLURM_STEP_ID SBATCH_WCKEY SBATCH_QOS", "wckey", "SBATCH_WCKEY SLURM_STEP_ID"),
    ],
)  # fmt: skip
def test_environment_variables_that_override_options_are_hidden_from_sbatch(environment, options, conflicts):
    assert conflicting_variables(environment.split(), options.split()) == conflicts.split()


def test_sbatch_gets_the_requested_options_and_none_of_submitit(sbatch):
    given, _, _ = sbatch()
    assert given["job-name"] == "olmo-jax"
    assert "wckey" not in given
    given, _, _ = sbatch(more=("wckey=paper", "exclusive", "gpus-per-node=2", "requeue_x="), gpus=1, memory_gb=3)
    assert (given["wckey"], given["exclusive"], given["mem"]) == ("paper", "", "3GB")
    assert given["gpus-per-node"] == "2"
    given, _, _ = sbatch(more=("wckey=", "job-name=", "mem="), memory_gb=3)
    assert not given.keys() & {"wckey", "job-name", "mem", "requeue-x"}


@pytest.mark.parametrize("cohorts", [1, 2])
def test_a_percent_sign_in_the_folder_name_is_escaped_for_slurm(sbatch, tmp_path, cohorts):
    workdir = tmp_path / "50%N of it"
    given, _, script = sbatch(workdir, cohorts)
    folder, number = f"{tmp_path}/50%%N of it/launch/submitit", "%A_%a" if cohorts == 2 else "%j"
    assert given["output"] == f"'{folder}/{number}_0_log.out'"
    assert given["error"] == f"'{folder}/{number}_0_log.err'"
    assert f"'--output={folder}/{number}_%t_log.out' '--error={folder}/{number}_%t_log.err'" in script
    assert str(workdir) in script.splitlines()[-1], "the task's own folder"


@pytest.mark.parametrize("engine", ["slurm", "local"])
@pytest.mark.parametrize("name", ["w%j", "%A", "%a", "t%t", "back\\slash", "two\nlines", "\udcff"])
def test_a_folder_name_that_slurm_would_expand_is_refused(sbatch, tmp_path, engine, name):
    with pytest.raises(ConfigError, match="^--workdir = .*choose another name"):
        launch(tmp_path / name, ["true"], range(2), Options(engine))
    assert not (tmp_path / name).exists()


@pytest.fixture(scope="module")
def cluster():
    if reason := slurm.why_not():
        pytest.skip(reason)
    pytest.importorskip("submitit")
    with slurm.cluster():
        yield


def submit(workdir, command, cohorts=range(2), **options):
    """Launches on Slurm and returns the id of the array."""
    lines = launch(workdir, command, cohorts, Options("slurm", cpus=1, **options))
    return lines[0].split("Slurm job ")[1].split("_")[0].split(",")[0]


def idle():
    return not slurm.run("squeue", "--noheader")


@pytest.mark.slow
def test_slurm_runs_an_array_with_one_task_per_cohort(cluster, stub, tmp_path):
    job = submit(tmp_path, stub(2), [0, 3], parallel=1)
    wait_until(idle)
    for cohort in (0, 3):
        assert notes(tmp_path, cohort) == ["start", "step 0", "step 1", "end"]
        assert "--cohort=" in (tmp_path / "launch" / f"cohort-{cohort}.log").read_text()
    assert list((tmp_path / "launch" / "submitit").glob(f"{job}_*_result.pkl"))


@pytest.mark.slow
def test_slurm_starts_branches_once_the_cohorts_of_their_parents_are_done(cluster, stub, tmp_path):
    lines = launch(tmp_path, stub(2, 0.5), range(3), Options("slurm", cpus=1), depths=(1, 0, 1))
    assert re.search(r"squeue --jobs=\d+,\d+; to stop: scancel \d+ \d+;", lines[3])
    wait_until(idle)
    assert passages(tmp_path, 0) == passages(tmp_path, 2) == ["start", "end"]
    assert times(tmp_path, 1)[1] <= min(times(tmp_path, 0)[0], times(tmp_path, 2)[0])


@pytest.mark.slow
def test_slurm_launches_inside_a_job_into_a_folder_with_a_percent_sign(cluster, stub, tmp_path, monkeypatch):
    for name, value in OUTER_JOB.items():
        monkeypatch.setenv(name, value)
    workdir = tmp_path / "50%N of it"
    job = submit(workdir, stub(1))
    wait_until(idle)
    assert notes(tmp_path, 0) == notes(tmp_path, 1) == ["start", "step 0", "end"]
    logs = {path.name for path in (workdir / "launch" / "submitit").glob("*_log.*")}
    assert logs == {f"{job}_{k}_0_log.{end}" for k in range(2) for end in ("out", "err")}


@pytest.mark.slow
def test_slurm_stops_tasks_after_a_checkpoint_and_requeues_them(cluster, stub, tmp_path):
    """For each kind of stop request, every child gets one SIGTERM, and no step is lost or repeated."""
    ways = ["scontrol requeue", "scancel --signal=TERM", "scancel --signal=USR2", "scancel --signal=INT"]
    job = submit(tmp_path, stub(60, 0.05), range(4))
    wait_until(lambda: all(len(steps(tmp_path, cohort)) > 2 for cohort in range(4)))
    for cohort, way in enumerate(ways):
        slurm.run(*way.split(), f"{job}_{cohort}")
    wait_until(idle)
    for cohort, way in enumerate(ways):
        assert passages(tmp_path, cohort) == ["start", "SIGINT" if "INT" in way else "SIGTERM", "start", "end"], way
        assert steps(tmp_path, cohort) == list(range(60))


@pytest.mark.slow
def test_cancelled_slurm_tasks_are_not_requeued_until_the_next_launch(cluster, stub, tmp_path):
    job = submit(tmp_path, stub(40, 0.05))
    wait_until(lambda: all(len(steps(tmp_path, cohort)) > 2 for cohort in range(2)))
    slurm.run("scancel", job)
    wait_until(idle)
    submit(tmp_path, stub(40, 0.05))
    wait_until(idle)
    for cohort in range(2):
        assert passages(tmp_path, cohort) == ["start", "SIGTERM", "start", "end"]
        assert steps(tmp_path, cohort) == list(range(40))


@pytest.mark.slow
def test_a_preempted_slurm_task_is_requeued(cluster, stub, tmp_path):
    submit(tmp_path, stub(60, 0.05), [0])
    wait_until(lambda: len(steps(tmp_path, 0)) > 2)
    slurm.run("sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=true")
    wait_until(idle)
    assert passages(tmp_path, 0) == ["start", "SIGTERM", "start", "end"]
    assert steps(tmp_path, 0) == list(range(60))


@pytest.mark.slow
def test_slurm_reports_a_task_that_fails_in_its_log_and_does_not_requeue_it(cluster, stub, tmp_path):
    (tmp_path / "fail-0").touch()
    job = submit(tmp_path, stub(1))
    wait_until(idle)
    assert notes(tmp_path, 0) == ["start"]
    assert notes(tmp_path, 1)[-1] == "end"
    (error,) = (tmp_path / "launch" / "submitit").glob(f"{job}_0_*.err")
    assert "cohort 0: exit code 1" in error.read_text()


@pytest.mark.slow
def test_slurm_refusals_are_reported(cluster, stub, tmp_path):
    with pytest.raises(LaunchError, match="invalid partition"):
        submit(tmp_path, stub(1), partition="nowhere")


@pytest.mark.slow
def test_a_requeued_slurm_sweep_trains_every_step_once(cluster, corpus, tmp_path, monkeypatch):
    config, workdir = tmp_path / "sweep.py", tmp_path / "w"
    text = CONFIG.format(corpus=str(corpus), root=str(tmp_path / "data"))
    text = text.replace("400", "200").replace('"optimizer.weight_decay": [0.1, 5.0]', '"data.batch_size": [4, 8]')
    config.write_text(
        text.replace(
            "grid=",
            "evaluation=dict(all_checkpoints=False, quantize=dict(bits=(8,), methods=('round_to_nearest',))), grid=",
        )
    )
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    command = [sys.executable, "-m", "sweeps.cli", "run", f"--config={config}", f"--workdir={workdir}"]
    job = submit(workdir, command)
    wait_until(lambda: list(workdir.glob("cohorts/*/checkpoints/[1-9]*")), 120)
    slurm.run("scontrol", "requeue", f"{job}_0", f"{job}_1")
    wait_until(idle, 120)
    lengths = set()
    for run in (workdir / "runs").iterdir():
        status = json.loads((run / "status.json").read_text())
        rows = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert status["state"] == "done"
        assert rows == list(range(status["total_steps"] + 1))
        assert list((run / "results").iterdir())
        lengths.add(len(rows))
    assert lengths == {201, 101}, "a cohort of each batch size"
    logs = [(workdir / "launch" / f"cohort-{cohort}.log").read_text() for cohort in range(2)]
    assert [log.count("# 2") for log in logs] == [2, 2], "starts"
