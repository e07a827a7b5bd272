"""Compilations of a whole sweep: each program once, and none again after a restart."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[3]

# Of a fresh cache, a hit is a program that this process has compiled before.
COUNT = """
import collections, json, sys
import jax
from sweeps import cli

events = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event]))
arguments, stages = sys.argv[1:], ("train", "evaluate")  # prepare and report have no programs
code = max(cli.main([stage, *arguments]) for stage in stages)
names = {name: events["/jax/compilation_cache/" + name] for name in ("cache_hits", "cache_misses")}
print(json.dumps({"code": code} | names))
"""


def counted(workdir, cache):
    little = [
        f"--config.train.data.root={workdir.parent / 'data'}",
        "--config.evaluation.quantize.calibration_tokens=512",
    ]
    command = [sys.executable, "-c", COUNT, "--config=demo:smoke", *little, f"--workdir={workdir}"]
    flags = " ".join(f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f)
    env = os.environ | {
        "XLA_FLAGS": flags,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_sweep_compiles_each_program_once_and_a_restart_none(tmp_path):
    first = counted(tmp_path / "first", tmp_path / "cache")
    assert first["code"] == 0
    assert first["cache_misses"] > 20
    assert first["cache_hits"] == 0
    second = counted(tmp_path / "second", tmp_path / "cache")
    assert second == {"code": 0, "cache_hits": first["cache_misses"], "cache_misses": 0}
