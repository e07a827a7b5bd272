"""A single-node Slurm for tests: its daemons are children of the test, with separate files, ports and key."""

import contextlib
import os
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator

_DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "squeue")
# A requeued job waits until its old credentials have run out, for 120 s by default, and then for the scheduler; 5 s is
# the least that counts. Setting StartTime=now to speed it up ends the job: "Job credential revoked".
_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_interval=1
ReturnToService=2
KillWait=20
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={node} CPUs=4 RealMemory=1000
PartitionName=low Nodes=one Default=YES PriorityTier=1 GraceTime=20 MaxTime=INFINITE State=UP
PartitionName=high Nodes=one PriorityTier=2 PreemptMode=OFF MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Return the reason why this machine can't run the cluster, or ""."""
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    lacking = [name for name in _DAEMONS if shutil.which(name) is None]
    return f"not installed: {', '.join(lacking)} (Debian's slurm-wlm and munge)" if lacking else ""


@contextlib.contextmanager
def cluster() -> Iterator[None]:
    """Four CPUs in two partitions, of which `high` preempts `low`; commands find it by SLURM_CONF until the end.

    Raises RuntimeError with the daemons' logs if they don't start. Ends all their processes afterwards.
    """
    folder = pathlib.Path(tempfile.mkdtemp(prefix="slurm-"))
    conf, before = folder / "slurm.conf", os.environ.get("SLURM_CONF")
    daemons: list[subprocess.Popen] = []
    try:
        for name in ("state", "spool"):
            (folder / name).mkdir()
        (controller, node), host = _free_ports(2), socket.gethostname().split(".")[0]
        conf.write_text(_CONF.format(folder=folder, host=host, controller=controller, node=node))
        (folder / "munge.key").write_bytes(secrets.token_bytes(128))
        (folder / "munge.key").chmod(0o400)
        os.environ["SLURM_CONF"] = str(conf)
        files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munge.pid", "seed-file": "munge.seed"}
        daemons.append(_start(folder, ["munged", "-F", "-f", *(f"--{key}={folder / f}" for key, f in files.items())]))
        _until(folder, daemons, (folder / "munge.socket").exists)
        daemons.append(_start(folder, ["slurmctld", "-D"]))
        daemons.append(_start(folder, ["slurmd", "-D", "-N", "one"]))
        _until(folder, daemons, lambda: run("sinfo", "--noheader", "--format=%T", check=False).strip() == "idle")
        yield
    finally:
        _end(conf, daemons)
        if before is None:
            os.environ.pop("SLURM_CONF", None)
        else:
            os.environ["SLURM_CONF"] = before
        shutil.rmtree(folder)


def run(*command: str, check: bool = True) -> str:
    """Return the output of a Slurm command."""
    return subprocess.run(command, check=check, stdout=subprocess.PIPE, stderr=None, text=True, timeout=60).stdout


def _start(folder: pathlib.Path, command: list[str]) -> subprocess.Popen:
    with open(folder / f"{command[0]}.log", "wb") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def _until(folder, daemons, condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in daemons):
            logs = "\n".join(f"{path.name}:\n{path.read_text()[-2000:]}" for path in sorted(folder.glob("*.log")))
            raise RuntimeError(f"Slurm didn't come up\n{logs}")
        time.sleep(0.05)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _end(conf: pathlib.Path, daemons: list[subprocess.Popen]) -> None:
    """Kill the daemons, their helpers, and remaining processes of jobs: all were started with our SLURM_CONF."""
    marker = f"SLURM_CONF={conf}".encode()
    while pids := [pid for pid in _others() if marker in _environment(pid)]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for daemon in daemons:
            daemon.wait()
        time.sleep(0.05)


def _others() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]


def _environment(pid: int) -> list[bytes]:
    """Return the environment of a process, or nothing if it has ended or can't be read."""
    try:
        return pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []
