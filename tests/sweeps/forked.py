"""Commands in separate processes that start immediately: heavy libraries are imported before forking."""

import multiprocessing
import os
import sys

HEAVY = [
    "sweeps.cli",
    "jax",
    "orbax.checkpoint",
    "optax",
    "sweeps.running.stages",
    "sweeps.planning.config_file",
    "sweeps.remote.mirror",
    "grain",
]


def start(arguments, compiled, stderr=None, **environment):
    """Runs `olmo-jax` and returns the process, whose exit code is the command's.

    Compiled programs are kept in the folder `compiled`: a killed process leaves some of them half written. What the
    command says goes to the file `stderr`, if given; `environment` are variables that it has beside those of the tests.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(HEAVY)
    process = server.Process(target=_carry_out, args=(arguments, str(compiled), stderr, environment))
    process.start()
    return process


def _carry_out(arguments, compiled, stderr, environment):
    import jax

    from sweeps import cli

    os.environ.update(environment)
    jax.config.update("jax_compilation_cache_dir", compiled)
    if stderr is not None:
        os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.exit(cli.main(arguments))
