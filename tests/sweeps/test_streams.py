"""Any text to any terminal or pipe: writing never raises, and a closed pipe ends the command cleanly."""

import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from sweeps import cli
from sweeps.streams import take_any_text
from sweeps.verbs import VERBS

ROOT = pathlib.Path(__file__).parents[2]
GENERATED = "\N{MINUS SIGN}1 \N{EN DASH} \N{RIGHT DOUBLE QUOTATION MARK}x\N{HORIZONTAL ELLIPSIS} \N{SUPERSCRIPT TWO}"


def stream(encoding):
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)


@pytest.mark.parametrize(
    ("encoding", "text", "written"),
    [
        ("ascii", GENERATED, b'-1 - "x... ^2'),
        ("ascii", "\N{GREEK SMALL LETTER RHO} \N{GREEK CAPITAL LETTER DELTA}loss", b"rho Deltaloss"),
        ("ascii", "\N{BOX DRAWINGS HEAVY HORIZONTAL}" * 3, b"---"),
        ("ascii", "caf\xe9 \u4e2d \U0001f600", rb"caf\xe9 \u4e2d \U0001f600"),
        ("latin-1", "caf\xe9 \u2212", b"caf\xe9 -"),
        ("utf-8", "caf\xe9 \udcff \ud800", b"caf\xc3\xa9 " + rb"\udcff \ud800"),
        ("utf-16-le", "\udcff", rb"\udcff".decode().encode("utf-16-le")),
    ],
)
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_unencodable_text_is_written_as_close_as_possible(monkeypatch, name, encoding, text, written):
    monkeypatch.setattr(sys, name, stream(encoding))
    take_any_text()
    print(text, end="", file=getattr(sys, name))
    assert getattr(sys, name).buffer.getvalue() == written


def test_every_character_is_writable_in_any_encoding(monkeypatch):
    monkeypatch.setattr(sys, "stdout", stream("ascii"))
    take_any_text()
    text = "".join(map(chr, range(0x11000)))
    print(text, end="")
    written = sys.stdout.buffer.getvalue()
    assert written.isascii()
    assert written[:128].decode() == text[:128], "ASCII stays as it is"
    assert len(written) >= len(text), "no character is dropped"


def test_a_progress_bar_is_drawn_on_ascii_terminals(monkeypatch):
    """As rich does on a terminal; the note may hold any text."""
    from olmo_jax.console import progress

    monkeypatch.setattr(sys, "stderr", stream("ascii"))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    take_any_text()
    with progress("train \N{EN DASH}", 3) as show:
        show(2, "\udcff\N{MINUS SIGN}")
    assert rb"train -" in sys.stderr.buffer.getvalue()


class Left(io.TextIOWrapper):
    """A pipe whose reader has closed it."""

    def __init__(self):
        reader, writer = os.pipe()
        super().__init__(os.fdopen(writer, "wb"), encoding="utf-8")
        os.close(reader)


@pytest.fixture
def left():
    """`left()`: a pipe as stdout whose reader has closed it."""
    with contextlib.ExitStack() as opened:

        def close(pipe):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

        def new():
            pipe = Left()
            opened.callback(close, pipe)
            return pipe

        yield new


def geometry_is(monkeypatch, carry_out):
    """Let the verb do something else."""
    monkeypatch.setitem(VERBS, "geometry", VERBS["geometry"]._replace(carry_out=carry_out))


def test_output_after_the_reader_closed_the_pipe_is_dropped(monkeypatch, capfd, left):
    """Later output is dropped; a broken pipe of another stream still raises."""

    def breaks(*arguments):
        raise BrokenPipeError(32, "Broken pipe")

    for length in (10, 10**6):
        geometry_is(monkeypatch, lambda command, length=length: print("x" * length) or 0)
        monkeypatch.setattr(sys, "stdout", left())
        assert cli.main(["geometry", "x.npy"]) == 0
    monkeypatch.undo()
    geometry_is(monkeypatch, breaks)
    assert cli.main(["geometry", "x.npy"]) == 1
    assert capfd.readouterr().err == "olmo-jax: x.npy: Broken pipe\n"


def environment(**variables):
    """The environment of a process without UTF-8 mode, as started by cron."""
    base = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    return base | {"PYTHONPATH": str(ROOT)} | variables


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def run(arguments, redirection="", **variables):
    """Run a command in a separate shell and return exit code, stdout and stderr."""
    line = f'"$@" {redirection}'
    command = ["bash", "-c", f"set -o pipefail; {line}", "bash", sys.executable, "-m", "sweeps.cli", *arguments]
    ended = subprocess.run(command, env=environment(**variables), capture_output=True)
    return ended.returncode, ended.stdout, ended.stderr


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    """A matrix in a file whose name is neither ASCII nor UTF-8."""
    path = os.fsencode(tmp_path_factory.mktemp("streams")) + b"/\xe2\x88\x92 \xff.npy"
    with open(path, "wb") as file:
        np.save(file, np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32))
    return path


def test_verbs_print_any_file_name_on_ascii_terminals(matrix, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, stream("ascii"))
    path = os.fsdecode(matrix)
    for arguments in ([], ["--json"]):
        assert cli.main(["geometry", path, "--metrics=mean_cosine", *arguments]) == 0
    table, _, json_text = sys.stdout.buffer.getvalue().partition(b"{")
    assert rb"- \udcff" in table
    assert json.loads(b"{" + json_text)
    assert cli.main(["geometry", path + ".gone"]) == 1
    (line,) = sys.stderr.buffer.getvalue().splitlines()
    assert line.startswith(b"olmo-jax: ") and rb"- \udcff.npy.gone" in line


@pytest.mark.slow
@pytest.mark.parametrize("variables", [ASCII, {"PYTHONIOENCODING": "ascii"}], ids=["cron", "PYTHONIOENCODING"])
def test_a_process_in_an_ascii_locale_names_any_file(matrix, variables):
    code, out, err = run(["geometry", matrix, "--json"], **variables)
    assert code == 0, err
    assert json.loads(out)


def test_closing_a_pipe_early_shows_no_error():
    for redirection in ("| true", ">&-", "2>&- >&-"):
        code, _, err = run(["--help"], redirection)
        assert (code, err) == (0, b""), redirection
    code, _, err = run(["--help"], ">/dev/full")
    assert (code, err) == (1, b"olmo-jax: standard output: No space left on device\n")
    code, out, _ = run(["nonsense"], "2>&-")
    assert (code, out) == (2, b"")


def test_messages_are_one_line_but_for_lists(capsys):
    from olmo_jax.errors import UserError
    from sweeps.remote.task import LaunchError

    assert cli._fail(1, str(UserError("a  b:\n   c\n\nd"))) == 1
    assert capsys.readouterr().err == "olmo-jax: a  b: c d\n"
    assert LaunchError("2 failed\na\nb").lines
    cli._fail(1, "2 failed\na\nb", lines=True)
    assert capsys.readouterr().err == "olmo-jax: 2 failed\na\nb\n"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(28, "No space left", b"/w/\xff"), 1, "olmo-jax: /w/\\udcff: No space left\n"),
        (OSError("what\nhappened"), 1, "olmo-jax: x.npy: what happened\n"),
        (
            MemoryError(),
            1,
            "olmo-jax: not enough memory: none is left; process less at a time, or use a larger machine\n",
        ),
        (KeyboardInterrupt(), 75, "olmo-jax: stopped immediately; run the same command again to resume\n"),
    ],
)
def test_common_errors_of_every_verb_are_one_line(monkeypatch, capsys, error, code, message):
    def fails(*arguments):
        raise error

    geometry_is(monkeypatch, fails)
    assert cli.main(["geometry", "x.npy"]) == code
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_outside_the_stages_is_one_line_and_exit_code_75(name):
    """Sent while the verb's libraries are imported."""
    program = (
        "import builtins, os, signal, sys; from sweeps import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored below a shell's background job
        "def import_(name, *rest, real=builtins.__import__):\n"
        f"    if name == 'jax': os.kill(os.getpid(), signal.{name})\n"
        "    return real(name, *rest)\n"
        "builtins.__import__ = import_\n"
        "sys.exit(cli.main(['plan', '--config=x.py']))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment())
    assert ended.stderr == "olmo-jax: stopped immediately; run the same command again to resume\n"
    assert ended.returncode == 75
