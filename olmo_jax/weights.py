"""Read weights by path, as named tensors: runs of a working directory, safetensors, GGUF, a .npy file.

Reading is lazy: one run at a time from a working directory, one tensor at a time from safetensors.
"""

import dataclasses
import functools
import json
import re
import reprlib
import tokenize
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open

from olmo_jax.checkpoint import load_run, run_steps
from olmo_jax.console import say
from olmo_jax.errors import WeightsError as WeightsError
from olmo_jax.errors import brief
from olmo_jax.execution.sharding import path_name
from olmo_jax.model import folded
from olmo_jax.storage import gguf, lfs
from olmo_jax.storage.paths import local
from olmo_jax.storage.run_files import known_runs
from olmo_jax.storage.safetensors import DTYPES

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_KINDS = "a working directory, a .safetensors file, a folder of them, a .gguf file, or a .npy file"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that is read on demand.

    Attributes:
      name: its parameter path, such as "blocks_0/mlp/up", or its name in the file.
      shape: in embeddings of our runs, without the rows that pad the vocabulary.
      dtype: the stored dtype, by numpy's name.
      read: returns the array, of `shape` and `dtype`.
      norm: the model's final norm, if this is the unembedding of one of our runs.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]
    norm: str | None = None

    @property
    def is_matrix(self) -> bool:
        """Return whether it has real numbers and two non-empty axes."""
        real = re.match("b?float|u?int", self.dtype) is not None
        return real and len(self.shape) == 2 and 0 not in self.shape


@dataclasses.dataclass(frozen=True)
class Model:
    """One model's weights: one of our runs at a step, or the content of a file or folder (run and step None).

    `tensors()` lists them by name, with numbers in names compared by value. It reads the whole of one of our runs, but
    only the headers of files. Raises WeightsError or CheckpointError.
    """

    run_id: str | None
    step: int | None
    tensors: Callable[[], list[Tensor]]


def models(path: epath.PathLike, run_id: str | None = None, step: int | None = None) -> list[Model]:
    """Return the models at a path.

    Args:
      path: one of our working directories, a .safetensors file, a folder of such files (one model, as read by
        `folder_tensors`), a .gguf file, or a .npy file (one array, named after the file).
      run_id: in a working directory, only this run.
      step: in a working directory, the checkpoints at this step; None for each run's last. Runs without one are
        skipped unless `run_id` names them.

    Raises:
      WeightsError: no weights that can be read, or none of that run or step.
      CheckpointError: no such run.
    """
    place = at(path)
    if not place.exists():
        raise WeightsError(f"{path}: no such file or folder; give {_KINDS}")
    if _is_working_directory(place):
        return _runs(place, run_id, step)
    if run_id is not None or step is not None:
        raise WeightsError(f"{path}: a run or step can be chosen only in a working directory, and this isn't one")
    if place.is_dir():
        return [Model(None, None, functools.partial(folder_tensors, place))]
    readers = {".safetensors": _safetensors, ".npy": _npy, gguf.SUFFIX: _gguf}
    if place.suffix in _PICKLES:
        raise WeightsError(_refused(place))
    if place.suffix not in readers:
        raise WeightsError(f"{path}: can't be read as weights; give {_KINDS}")
    return [Model(None, None, functools.partial(readers[place.suffix], place))]


def at(path: epath.PathLike) -> epath.Path:
    """Return the path that a user means: `~` is the home folder, and a URL is left as it is."""
    return epath.Path(path if "://" in str(path) else local(path))


def _is_working_directory(place: epath.Path) -> bool:
    """Return whether a folder is one of our working directories; other programs use a folder `runs` too."""
    if (place / "sweep.json").exists():
        return True
    return (place / "runs").is_dir() and any(
        _names_a_run(place / "runs" / run / "config.json") for run in known_runs(place)
    )


def _names_a_run(file: epath.Path) -> bool:
    try:
        return "run_id" in json.loads(file.read_bytes())
    except (ValueError, TypeError, RecursionError):
        return False


def _refused(pickle: epath.Path) -> str:
    return (
        f"{pickle}: is a pickle, which can run any code when it is loaded, so it isn't read; use the model's "
        ".safetensors, or convert the file to that format if you trust it"
    )


def _runs(workdir: epath.Path, run_id: str | None, step: int | None) -> list[Model]:
    known = [run_id] if run_id is not None else known_runs(workdir)
    steps = {run: run_steps(workdir, run) for run in known}
    selected = {run: [s for s in steps[run] if step in (None, s)] for run in known}
    if not any(selected.values()):
        of_run = "" if run_id is None else f" of run '{run_id}'"
        at_step = "" if step is None else f" at step {step}"
        available = ", ".join(map(str, sorted({s for run in known for s in steps[run]}))) or "none yet; train first"
        raise WeightsError(f"{workdir}: no checkpoint{of_run}{at_step}; steps: {available}")
    last = {run: run_selected[-1] for run, run_selected in selected.items() if run_selected}
    return [Model(run, s, functools.partial(_run_tensors, workdir, run, s)) for run, s in last.items()]


def _run_tensors(workdir: epath.Path, run_id: str, step: int) -> list[Tensor]:
    config, params = folded(*load_run(workdir, run_id, step))

    def tensor(path: Any, array: np.ndarray) -> Tensor:
        name = path_name(path)
        if name in ("embedding", "unembedding"):
            array = array[: config.vocab_size]
        norm = config.norm if name == ("embedding" if config.tied else "unembedding") else None
        return Tensor(name, array.shape, array.dtype.name, lambda: array, norm)

    return _in_order(tensor(path, array) for path, array in jax.tree_util.tree_leaves_with_path(params))


def folder_tensors(folder: epath.Path) -> list[Tensor]:
    """Return the tensors of a folder of .safetensors files; other files are ignored.

    As in transformers, they are those of model.safetensors, else of the files that model.safetensors.index.json names;
    without either, those of every .safetensors file. Raises WeightsError.
    """
    # Hidden files are skipped: macOS creates some beside files that it copies.
    files = sorted(f for f in folder.iterdir() if f.suffix == ".safetensors" and not f.name.startswith("."))
    if broken := [file for file in files if not file.exists()]:
        raise WeightsError(f"{broken[0]}: is a link to a file that doesn't exist; download it again")
    if (folder / _SINGLE).is_file():
        if ignored := [f.name for f in (folder / _INDEX, *files) if f.exists() and f.name != _SINGLE]:
            _say_once(f"{folder}: uses {_SINGLE}, as transformers does, and {_listed(ignored)} ignored")
        return _safetensors(folder / _SINGLE)
    if (folder / _INDEX).exists():
        return _sharded(folder, _weight_map(folder / _INDEX))
    files = [file for file in files if file.is_file()]
    if not files:
        if pickles := sorted(file for file in folder.iterdir() if file.suffix in _PICKLES):
            raise WeightsError(_refused(pickles[0]))
        raise WeightsError(f"{folder}: is neither a working directory with runs nor a folder of .safetensors files")
    tensors = {file: _safetensors(file) for file in files}
    names = [tensor.name for file_tensors in tensors.values() for tensor in file_tensors]
    if len(set(names)) == len(names):
        return _in_order(tensor for file_tensors in tensors.values() for tensor in file_tensors)
    # Several models in one folder: the name of the file distinguishes their tensors.
    return [
        dataclasses.replace(tensor, name=f"{file.stem}:{tensor.name}")
        for file, file_tensors in tensors.items()
        for tensor in file_tensors
    ]


_say_once = functools.cache(say)


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more are' if len(names) > 3 else ' is'}"


def _weight_map(index: epath.Path) -> dict[str, str]:
    """Return the file name of each tensor, by tensor name."""
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        return {str(name): _file_name(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        cause = f"{type(error).__name__}: {error}"
        raise unreadable(index, "not an index of safetensors files", cause, "download it again") from error


def _file_name(name: Any) -> str:
    if not isinstance(name, str) or "\0" in name or len(name) > 255:
        raise ValueError(f"{reprlib.repr(name)} isn't a file name")
    return name


def unreadable(file: epath.Path, what: str, cause: Exception | str, remedy: str) -> WeightsError:
    """Return the error for a file whose content doesn't match its name: a Git LFS pointer, or `what`."""
    return WeightsError(f"{file}: {lfs.REMEDY if lfs.pointer(file) else f'{what} ({brief(cause)}); {remedy}'}")


def _sharded(folder: epath.Path, weight_map: dict[str, str]) -> list[Tensor]:
    tensors = []
    for name in sorted(set(weight_map.values())):
        if not (folder / name).is_file():
            raise WeightsError(f"{folder / name}: is missing, and {_INDEX} names it; download it too")
        tensors += [tensor for tensor in _safetensors(folder / name) if weight_map.get(tensor.name) == name]
    missing = sorted(weight_map.keys() - {tensor.name for tensor in tensors})
    if missing:
        raise WeightsError(
            f"{folder / weight_map[missing[0]]}: lacks '{missing[0]}', which {_INDEX} says it holds; download both "
            "again"
        )
    return _in_order(tensors)


def _safetensors(file: epath.Path) -> list[Tensor]:
    try:
        with safe_open(file, framework="np") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  safe_open is no dict
    except SafetensorError as error:
        raise unreadable(file, "not a complete .safetensors file", error, "download or save it again") from error

    def tensor(name: str, part: Any) -> Tensor:
        dtype = DTYPES.get(part.get_dtype(), part.get_dtype())
        return Tensor(name, tuple(part.get_shape()), dtype, functools.partial(_read_safetensor, file, name))

    return _in_order(tensor(name, part) for name, part in slices.items())


def _read_safetensor(file: epath.Path, name: str) -> np.ndarray:
    with safe_open(file, framework="np") as opened:
        return opened.get_tensor(name)


def _gguf(file: epath.Path) -> list[Tensor]:
    """Return the tensors of a GGUF file by the names in it, dequantised when they are read."""
    opened = gguf.open_gguf(file)
    return _in_order(
        Tensor(tensor.name, tensor.shape, "float32", functools.partial(opened.read, tensor.name))
        for tensor in opened.tensors.values()
    )


def _npy(file: epath.Path) -> list[Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy only warns about a shape whose size overflows
            # Maps the file and rejects Python objects; np.load would also try archives and pickles.
            array = np.lib.format.open_memmap(file, mode="r")
    except _DAMAGED_NPY as error:
        remedy = "create it with numpy.save (a headerless array of tokens can't be read here)"
        raise unreadable(file, "not a complete .npy file of numbers", error, remedy) from error
    if array.dtype.kind == "V":
        raise WeightsError(f"{file}: holds raw bytes, which is how numpy saves bfloat16; save it as float32")
    return [Tensor(file.stem, array.shape, array.dtype.name, lambda: array)]


# Exceptions that a damaged header raises.
_DAMAGED_NPY = (
    ValueError, TypeError, SyntaxError, tokenize.TokenError, OverflowError, RecursionError, MemoryError, Warning,
)  # fmt: skip


def _in_order(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return the tensors sorted by name, blocks_2 before blocks_10."""
    return sorted(tensors, key=lambda tensor: _with_numbers(tensor.name))


def _with_numbers(name: str) -> list[Any]:
    """Return a sort key of a name: its texts and numbers in order, a number as length and digits, to sort by value."""
    parts = re.split("([0-9]+)", name)
    return [(len(p.lstrip("0")), p.lstrip("0"), p) if i % 2 else p for i, p in enumerate(parts)]
