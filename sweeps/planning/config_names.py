"""Configurations by name: `--config=demo` is a file that comes with the library, wherever that is installed."""

from pathlib import Path

from olmo_jax.console import say
from olmo_jax.moved import MOVED

_ROOT = Path(__file__).parents[2]
# A file of any of these folders with a get_config is a configuration, named as the file.
_FOLDERS = ("sweeps/configs", "sweeps/studies/*", "olmo_jax/configs")


def named_configs() -> dict[str, Path]:
    """Return the files that come with the library, by name."""
    # Of two files of one name the later folder's would hide the other; tests/sweeps/planning holds that there are none.
    files = [file for folder in _FOLDERS for file in sorted(_ROOT.glob(f"{folder}/*.py"))]
    return {file.stem: file for file in files if "\ndef get_config(" in file.read_text(encoding="utf-8")}


def config_path(file: str) -> str:
    """Return the path of the configuration that the user calls `file`.

    A path to a file is itself; the name of one that comes with the library is that file, and so is the path that it had
    in a checkout before it was moved, which is said. Anything else is returned as it is.
    """
    if Path(file).is_file():
        return file
    former = file.removeprefix("./").removesuffix(".py").replace("/", ".")
    if file.endswith(".py") and former in MOVED:
        moved = _ROOT / (MOVED[former].replace(".", "/") + ".py")
        say(f"{file} was moved: use --config={moved.stem}")
        return str(moved)
    known = named_configs()
    return str(known[file]) if file in known else file
