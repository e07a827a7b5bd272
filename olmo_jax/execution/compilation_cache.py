"""A cache of compiled programs on disk, so that a restarted stage doesn't compile them again."""

import hashlib
import os
import platform
import tempfile
from pathlib import Path

import jax

from olmo_jax.console import say
from olmo_jax.files import write_whole

_MACHINE_FILE = "machine.txt"
_MAPPINGS, _MOST_MAPPINGS = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
_USED_AT_MOST = 0.5


def keep_compiled(folder: Path) -> None:
    """Cache all compiled programs in `folder`, or in the folder that JAX_COMPILATION_CACHE_DIR names.

    A folder that can't be written, or whose programs were compiled for another machine, is not used: this process
    prints one line and compiles its programs itself.
    """
    configured = jax.config.values["jax_compilation_cache_dir"]
    if configured and "://" in configured:
        return
    path = Path(configured or folder)
    if problem := _problem(path, check_machine=not configured):
        say(f"{path}: {problem}; compiled programs aren't kept, and each start compiles them again")
        jax.config.update("jax_compilation_cache_dir", None)
    elif not configured:
        jax.config.update("jax_compilation_cache_dir", str(path))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def release_programs() -> None:
    """Release all compiled programs if this process has used half of the memory mappings that Linux allows it.

    XLA maps some dozens of pieces of memory per program. A sweep of many shapes would reach the limit (65,530 by
    default), where compiling fails with "Cannot allocate memory" and the process ends with a segmentation fault,
    however much memory is free. A program that is needed again is read from the cache on disk.
    """
    try:
        most = int(_MOST_MAPPINGS.read_text())
        with open(_MAPPINGS, "rb") as mappings:
            used = sum(1 for _ in mappings)
    except (OSError, ValueError):  # not Linux
        return
    if used > most * _USED_AT_MOST:
        jax.clear_caches()


def machine() -> str:
    """Return one line that identifies this machine's processor and its features, which compiled programs rely on."""
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
    """Return why programs can't be kept in a folder, "" if they can; creates the folder."""
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
        return f"holds programs compiled for another machine ({compiled_for[:100]!r}; this one is {machine()!r})"
    return ""
