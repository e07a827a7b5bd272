"""The tensors of any weights, a path in and names with arrays out: our own runs, safetensors, a .npy file.

Nothing is read before it is asked for: of a working directory one run at a time, of safetensors one tensor at a time.
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
from olmo_jax.errors import UserError, brief
from olmo_jax.execution.sharding import path_name
from olmo_jax.storage import lfs
from olmo_jax.storage.paths import local
from olmo_jax.storage.run_files import known_runs

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_KINDS = "a working directory, a .safetensors file, a folder of them, or a .npy file"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")

# safetensors' names of the types that it can give as numpy's (bfloat16 is one since jax registers it); the narrower
# ones of quantised files keep safetensors' name and are no matrices here.
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "C64": "complex64", "BOOL": "bool",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
}  # fmt: skip


class WeightsError(UserError):
    """Weights that can't be read; the message says what is wrong, where, and what to do."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that isn't read yet.

    Attributes:
      name: its path of parameters, such as "blocks_0/mlp/up", or what its file calls it.
      shape: without the rows of our own embeddings that pad the vocabulary.
      dtype: as stored, by numpy's name.
      read: gives the array, of `shape` and `dtype`.
      norm: of the states that it makes logits of, where it is the unembedding of a run of ours.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]
    norm: str | None = None

    @property
    def is_matrix(self) -> bool:
        """Whether it has two axes, neither of them empty, of real numbers."""
        real = re.match("b?float|u?int", self.dtype) is not None
        return real and len(self.shape) == 2 and 0 not in self.shape


@dataclasses.dataclass(frozen=True)
class Model:
    """One model's weights: a run of ours at a step, or (run and step None) what a file or folder holds.

    `tensors()` lists them in the order of their names, numbers by value; it reads a run of ours whole, and of files
    no more than headers. Raises WeightsError or CheckpointError.
    """

    run_id: str | None
    step: int | None
    tensors: Callable[[], list[Tensor]]


def models(path: epath.PathLike, run_id: str | None = None, step: int | None = None) -> list[Model]:
    """The models that lie at a path.

    Args:
      path: a working directory of ours, a .safetensors file, a folder of such files (one model, as `folder_tensors`
        reads it), or a .npy file (one array, named after the file).
      run_id: of a working directory, this run alone.
      step: of a working directory, the checkpoints at this step; else each run's last. Runs that have none are left
        out unless they are asked for by name.

    Raises:
      WeightsError: nothing there that can be read, or nothing of what was asked for.
      CheckpointError: no such run.
    """
    place = at(path)
    if not place.exists():
        raise WeightsError(f"{path}: no such file or folder; give {_KINDS}")
    if _is_working_directory(place):
        return _runs(place, run_id, step)
    if run_id is not None or step is not None:
        raise WeightsError(f"{path}: a run or a step is chosen only in a working directory, and this isn't one")
    if place.is_dir():
        return [Model(None, None, functools.partial(folder_tensors, place))]
    readers = {".safetensors": _safetensors, ".npy": _npy}
    if place.suffix in _PICKLES:
        raise WeightsError(_refused(place))
    if place.suffix not in readers:
        raise WeightsError(f"{path}: can't be read as weights; give {_KINDS}")
    return [Model(None, None, functools.partial(readers[place.suffix], place))]


def at(path: epath.PathLike) -> epath.Path:
    """The place that a path of a user's names: `~` is the home folder, a URL stays one."""
    return epath.Path(path if "://" in str(path) else local(path))


def _is_working_directory(place: epath.Path) -> bool:
    """Whether a folder is one of ours: another program's may have a folder `runs` too, as TensorBoard's logs."""
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
        f"{pickle}: is a pickle, which runs whatever code it holds when it is opened, so it isn't; take the model's "
        ".safetensors, or save them as such where you trust the file"
    )


def _runs(workdir: epath.Path, run_id: str | None, step: int | None) -> list[Model]:
    known = [run_id] if run_id is not None else known_runs(workdir)
    steps = {run: run_steps(workdir, run) for run in known}
    wanted = {run: [s for s in steps[run] if step in (None, s)] for run in known}
    if not any(wanted.values()):
        of = "" if run_id is None else f" of run '{run_id}'"
        at = "" if step is None else f" at step {step}"
        have = ", ".join(map(str, sorted({s for run in known for s in steps[run]}))) or "none yet; train first"
        raise WeightsError(f"{workdir}: no checkpoint{of}{at}; steps: {have}")
    last = {run: found[-1] for run, found in wanted.items() if found}
    return [Model(run, s, functools.partial(_run_tensors, workdir, run, s)) for run, s in last.items()]


def _run_tensors(workdir: epath.Path, run_id: str, step: int) -> list[Tensor]:
    config, params = load_run(workdir, run_id, step)

    def tensor(path: Any, array: np.ndarray) -> Tensor:
        name = path_name(path)
        if name in ("embedding", "unembedding"):
            array = array[: config.vocab_size]
        norm = config.norm if name == ("embedding" if config.tied else "unembedding") else None
        return Tensor(name, array.shape, array.dtype.name, lambda: array, norm)

    return _in_order(tensor(path, array) for path, array in jax.tree_util.tree_leaves_with_path(params))


def folder_tensors(folder: epath.Path) -> list[Tensor]:
    """The tensors of a folder of .safetensors, whatever else lies in it.

    Those that transformers takes: of model.safetensors, else of the parts that model.safetensors.index.json names.
    With neither, of every .safetensors. Raises WeightsError.
    """
    # Names with a dot are no weights: macOS leaves such beside files that it copies.
    files = sorted(f for f in folder.iterdir() if f.suffix == ".safetensors" and not f.name.startswith("."))
    if gone := [file for file in files if not file.exists()]:
        raise WeightsError(f"{gone[0]}: is a link to a file that isn't there; download it again")
    if (folder / _SINGLE).is_file():
        if left := [f.name for f in (folder / _INDEX, *files) if f.exists() and f.name != _SINGLE]:
            _say_once(f"{folder}: {_SINGLE} is taken, as transformers does, and {_listed(left)} left out")
        return _safetensors(folder / _SINGLE)
    if (folder / _INDEX).exists():
        return _sharded(folder, _weight_map(folder / _INDEX))
    files = [file for file in files if file.is_file()]
    if not files:
        if pickles := sorted(file for file in folder.iterdir() if file.suffix in _PICKLES):
            raise WeightsError(_refused(pickles[0]))
        raise WeightsError(f"{folder}: neither a working directory with runs nor a folder of .safetensors files")
    tensors = {file: _safetensors(file) for file in files}
    names = [tensor.name for found in tensors.values() for tensor in found]
    if len(set(names)) == len(names):
        return _in_order(tensor for found in tensors.values() for tensor in found)
    # Several models side by side: the file's name tells their tensors apart.
    return [
        dataclasses.replace(tensor, name=f"{file.stem}:{tensor.name}")
        for file, found in tensors.items()
        for tensor in found
    ]


_say_once = functools.cache(say)


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more are' if len(names) > 3 else ' is'}"


def _weight_map(index: epath.Path) -> dict[str, str]:
    """Tensor name -> file name."""
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        return {str(name): _file_name(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        cause = f"{type(error).__name__}: {error}"
        raise unreadable(index, "not an index of safetensors", cause, "download it again") from error


def _file_name(name: Any) -> str:
    if not isinstance(name, str) or "\0" in name or len(name) > 255:
        raise ValueError(f"{reprlib.repr(name)} is no file's name")
    return name


def unreadable(file: epath.Path, what: str, cause: Exception | str, remedy: str) -> WeightsError:
    """The error for a file that isn't what its name says: a Git LFS pointer, or `what`."""
    return WeightsError(f"{file}: {lfs.REMEDY if lfs.pointer(file) else f'{what} ({brief(cause)}); {remedy}'}")


def _sharded(folder: epath.Path, weight_map: dict[str, str]) -> list[Tensor]:
    found = []
    for name in sorted(set(weight_map.values())):
        if not (folder / name).is_file():
            raise WeightsError(f"{folder / name}: missing, and {_INDEX} names it; download it too")
        found += [tensor for tensor in _safetensors(folder / name) if weight_map.get(tensor.name) == name]
    lost = sorted(weight_map.keys() - {tensor.name for tensor in found})
    if lost:
        raise WeightsError(
            f"{folder / weight_map[lost[0]]}: lacks '{lost[0]}', which {_INDEX} says it holds; download both again"
        )
    return _in_order(found)


def _safetensors(file: epath.Path) -> list[Tensor]:
    try:
        with safe_open(file, framework="np") as opened:
            parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  safe_open is no dict
    except SafetensorError as error:
        raise unreadable(file, "not a whole .safetensors file", error, "get or save it again") from error

    def tensor(name: str, part: Any) -> Tensor:
        dtype = _DTYPES.get(part.get_dtype(), part.get_dtype())
        return Tensor(name, tuple(part.get_shape()), dtype, functools.partial(_read_safetensor, file, name))

    return _in_order(tensor(name, part) for name, part in parts.items())


def _read_safetensor(file: epath.Path, name: str) -> np.ndarray:
    with safe_open(file, framework="np") as opened:
        return opened.get_tensor(name)


def _npy(file: epath.Path) -> list[Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a shape whose size can't be counted is only warned of
            # Maps the file and refuses Python objects; np.load would also try archives and pickles.
            array = np.lib.format.open_memmap(file, mode="r")
    except _GARBLED_NPY as error:
        remedy = "make it with numpy.save (a headerless array of tokens isn't meant here)"
        raise unreadable(file, "not a whole .npy file of numbers", error, remedy) from error
    if array.dtype.kind == "V":
        raise WeightsError(f"{file}: holds raw bytes, which is how numpy saves bfloat16; save it as float32")
    return [Tensor(file.stem, array.shape, array.dtype.name, lambda: array)]


# What a garbled header raises.
_GARBLED_NPY = (
    ValueError, TypeError, SyntaxError, tokenize.TokenError, OverflowError, RecursionError, MemoryError, Warning,
)  # fmt: skip


def _in_order(tensors: Iterable[Tensor]) -> list[Tensor]:
    """By name, blocks_2 before blocks_10."""
    return sorted(tensors, key=lambda tensor: _with_numbers(tensor.name))


def _with_numbers(name: str) -> list[Any]:
    """A name's texts and numbers, in turn; a number as its length and digits, which sort by its value."""
    parts = re.split("([0-9]+)", name)
    return [(len(p.lstrip("0")), p.lstrip("0"), p) if i % 2 else p for i, p in enumerate(parts)]
