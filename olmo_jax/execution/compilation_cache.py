"""Compiled programs kept on disk, so that a later start of a stage compiles nothing that an earlier one has."""

import hashlib
import os
import platform
import tempfile
from pathlib import Path

import jax

from olmo_jax.console import say
from olmo_jax.files import write_whole

_MACHINE_FILE = "machine.txt"


def keep_compiled(folder: Path) -> None:
    """Keeps compiled programs in `folder`, or in the one that JAX_COMPILATION_CACHE_DIR names, from the first on.

    A folder that can't be written, or whose programs were compiled for another machine, is left alone: one line says
    so, and this process compiles its programs itself.
    """
    configured = jax.config.values["jax_compilation_cache_dir"]
    if configured and "://" in configured:
        return
    place = Path(configured or folder)
    if problem := _problem(place, check_machine=not configured):
        say(f"{place}: {problem}; compiled programs aren't kept, so that each start compiles its own")
        jax.config.update("jax_compilation_cache_dir", None)
    elif not configured:
        jax.config.update("jax_compilation_cache_dir", str(place))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def machine() -> str:
    """One line that names this machine's kind of processor: what a program that was compiled for it may rely on."""
    features = model = ""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                features = " ".join(sorted(value.split()))
            elif name.strip() == "model name":
                model = value.strip()
    except OSError:
        model = platform.processor()
    return f"{platform.machine()} {model} {hashlib.sha256(features.encode()).hexdigest()[:16]}"


def _problem(folder: Path, check_machine: bool) -> str:
    """Why programs can't be kept in a folder; "" if they can. Makes the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        if not check_machine:
            return ""
        note = folder / _MACHINE_FILE
        if not (note.exists() and note.read_bytes().strip(b"\0")):  # empty or NUL after a power cut
            write_whole(note, machine(), durable=False)
        compiled_for = note.read_text(errors="replace")
    except OSError as error:
        return f"can't be written ({os.strerror(error.errno) if error.errno else error})"
    if compiled_for != machine():
        return f"holds programs compiled for another machine ({compiled_for[:100]!r}, and this is {machine()!r})"
    return ""
