"""Commands in processes of their own that start at once: what is heavy to import was imported before they forked."""

import contextlib
import multiprocessing
import os

HEAVY = ["sweeps.cli", "jax", "orbax.checkpoint", "optax", "sweeps.run", "sweeps.config_file", "sweeps.mirror", "grain"]


@contextlib.contextmanager
def forked(folder):
    """Yields `start(arguments)`, which runs `olmo-jax` with them and returns the process.

    Compiled programs, the smallest too, are kept in `folder`.
    """
    from sweeps import cli

    kept = {"JAX_COMPILATION_CACHE_DIR": str(folder), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    before = {name: os.environ.get(name) for name in kept}
    os.environ.update(kept)
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(HEAVY)

    def start(arguments):
        process = server.Process(target=cli.main, args=(arguments,))
        process.start()
        return process

    try:
        yield start
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
