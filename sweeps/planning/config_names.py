"""Find configurations by name: `--config=demo` is a file of the library, wherever the library is installed."""

from pathlib import Path

from olmo_jax.console import say
from olmo_jax.moved import MOVED

_ROOT = Path(__file__).parents[2]
# A file in any of these folders that defines get_config is a configuration, named after the file.
_FOLDERS = ("sweeps/configs", "sweeps/studies/*", "olmo_jax/configs")


def named_configs() -> dict[str, Path]:
    """Return the configuration files of the library, by name."""
    # Of two files with the same name, the later folder's would hide the other; a test checks that there are none.
    files = [file for folder in _FOLDERS for file in sorted(_ROOT.glob(f"{folder}/*.py"))]
    return {file.stem: file for file in files if "\ndef get_config(" in file.read_text(encoding="utf-8")}


def config_path(file: str) -> str:
    """Return the path of the configuration that the user calls `file`.

    The path of an existing file is returned as it is. For the name of a configuration of the library, its path is
    returned; so it is for its former path in a checkout, with a message that it was moved. Anything else is returned as
    it is.
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
