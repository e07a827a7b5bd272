"""Where compiled programs are stored, and the behaviour if they can't be."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from olmo_jax.execution import compilation_cache
from olmo_jax.execution.compilation_cache import keep_compiled, machine

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture
def cache():
    """A function that reads JAX's cache setting, which is unset at the start and restored after the test."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    jax.config.update(names[0], None)
    yield lambda: jax.config.values[names[0]]
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_cache_folder_is_created_and_used(tmp_path, cache, capsys):
    folder = tmp_path / "compiled" / "host"
    keep_compiled(folder)
    assert cache() == str(folder)
    assert (folder / "machine.txt").read_text() == machine()
    keep_compiled(folder)
    assert cache() == str(folder) and capsys.readouterr().err == ""


@pytest.mark.parametrize("left", [b"", bytes(40)], ids=["empty", "nul"])
def test_an_empty_metadata_file_is_rewritten(tmp_path, cache, capsys, left):
    (tmp_path / "machine.txt").write_bytes(left)
    keep_compiled(tmp_path)
    assert cache() == str(tmp_path) and capsys.readouterr().err == ""
    assert (tmp_path / "machine.txt").read_text() == machine()


def test_an_unwritable_cache_folder_is_reported_once_and_skipped(tmp_path, cache, capsys):
    (tmp_path / "compiled").write_text("a file")
    keep_compiled(tmp_path / "compiled" / "host")
    assert cache() is None
    assert capsys.readouterr().err == (
        f"{tmp_path}/compiled/host: can't be written (Not a directory); compiled programs aren't kept, and each "
        "start compiles them again\n"
    )
    assert float(jax.jit(lambda x: x + 2)(jnp.float32(1))) == 3


def test_programs_of_another_machine_are_ignored_and_kept(tmp_path, cache, capsys):
    (tmp_path / "machine.txt").write_text("x86_64 of yesteryear")
    (tmp_path / "jit_f-0-cache").write_text("theirs")
    keep_compiled(tmp_path)
    assert cache() is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds programs compiled for another machine ('x86_64 of yesteryear'" in line
    assert {path.name for path in tmp_path.iterdir()} == {"machine.txt", "jit_f-0-cache"}


def test_a_user_configured_folder_stays_in_use_if_writable(tmp_path, cache, capsys):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "shared"))
    keep_compiled(tmp_path / "work")
    assert cache() == str(tmp_path / "shared") and not (tmp_path / "work").exists()
    assert list((tmp_path / "shared").iterdir()) == []
    (tmp_path / "file").touch()
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "file"))
    keep_compiled(tmp_path / "work")
    assert cache() is None
    assert "file: can't be written (File exists)" in capsys.readouterr().err


RELEASE = """
import pathlib, sys
import jax, jax.numpy as jnp
from olmo_jax.execution import compilation_cache

limit = compilation_cache._MOST_MAPPINGS = pathlib.Path(sys.argv[1])
function = jax.jit(lambda x: jnp.cumsum(jnp.sin(x) @ x, axis=0))

def used():
    return len(compilation_cache._MAPPINGS.read_text().splitlines())

x = jnp.ones((7, 7))
expected, with_program = function(x), used()
limit.write_text(str(10 * used()))
compilation_cache.release_programs()
assert function._cache_size() == 1
limit.write_text(str(used()))
compilation_cache.release_programs()
assert function._cache_size() == 0
assert used() < with_program
assert jnp.array_equal(function(x), expected)
limit.unlink()
compilation_cache.release_programs()
assert function._cache_size() == 1
"""


@pytest.mark.skipif(not compilation_cache._MAPPINGS.exists(), reason="only Linux limits and lists memory mappings")
def test_programs_are_released_near_the_limit_of_mappings_and_compiled_again(tmp_path):
    """In a process of its own, since all programs of a process are released."""
    command = [sys.executable, "-c", RELEASE, str(tmp_path / "max_map_count")]
    ended = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
