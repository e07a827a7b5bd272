"""The corpus that is always there: the Python files of the standard library and of installed packages.

Their docstrings and comments are prose, the files themselves code. Nothing is downloaded, and the same versions of the
same packages give the same examples in the same order.
"""

import hashlib
import importlib.metadata
import os
import platform
import re
import sysconfig
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from olmo_jax.data.sources import prose
from olmo_jax.data.sources.example import Example, capped

VERSION = "1.0.0"  # of what the files are turned into; a change of the text needs a new one

# (distribution, folder below site-packages)
TRAINING = (
    ("numpy", "numpy"),
    ("scipy", "scipy"),
    ("pandas", "pandas"),
    ("scikit-learn", "sklearn"),
    ("statsmodels", "statsmodels"),
    ("matplotlib", "matplotlib"),
    ("patsy", "patsy"),
    ("joblib", "joblib"),
)
HELD_OUT = {
    "prose_display": (("plotly", "plotly"), ("rich", "rich"), ("Pygments", "pygments"), ("absl-py", "absl")),
    "prose_huggingface": (("huggingface_hub", "huggingface_hub"),),
    "prose_jax": (("jax", "jax"), ("flax", "flax"), ("optax", "optax"), ("chex", "chex")),
    "prose_orbax": (
        ("orbax-checkpoint", "orbax/checkpoint"),
        ("grain", "grain"),
        ("tensorflow-datasets", "tensorflow_datasets/core"),
        ("etils", "etils"),
    ),
}

# Tests repeat themselves, vendored code belongs to others, and the rest is written by programs.
_SKIPPED_FOLDERS = re.compile(
    r"tests?|_?testing|idle_test|internal_test_util|_generated|(site|dist)-packages|__pycache__|_?vendor|_bundled|"
    r"encodings|pydoc_data|lib2to3|lib-dynload|graph_objs|validators"
)
_SKIPPED_FILES = re.compile(r"_sysconfigdata.*|__config__\.py|_?version\w*\.py|.*_test\.py|test_.*\.py")
# A file goes to prose or to code, never to both: code holds its docstrings, and a model tuned on it would have read
# the validation prose.
_CODE_SHARE = 0.2
_LARGEST_CODE_FILE = 200_000
_GENERATED = re.compile(r"(?i)(auto-?)?generated (by|from|file|automatically)|do not (edit|modify)")
_FILES_A_PROCESS = (16, 128)  # at first, so that a small cap is soon met, and at most


class File(NamedTuple):
    id: str  # "numpy/linalg/_linalg.py"
    path: Path
    domain: str
    bytes: int


def sources(max_megabytes: float) -> dict[str, str]:
    """What the corpus is made from, without reading it: versions, and a hash over names and sizes of files.

    The sizes are there since one version of the standard library is not the same on every system.
    """
    found = {"python_packages": VERSION, "python": platform.python_version(), "max_megabytes": repr(max_megabytes)}
    for domain, name, folder in _packages():
        distribution = _distribution(name)
        if distribution is not None:
            found[f"{domain}/{folder}"] = distribution.version
    listing = "".join(f"{f.domain} {f.id} {f.bytes}\n" for f in files())
    return found | {"files": hashlib.sha256(listing.encode()).hexdigest()}


def files() -> list[File]:
    """Every file the corpus may draw from, in the order in which it does: by the hash of its id, so any beginning of
    the list is an even sample of all packages."""
    roots = [("prose", "python", Path(sysconfig.get_paths()["stdlib"]))]
    for domain, name, folder in _packages():
        distribution = _distribution(name)
        if distribution is not None:
            roots.append((domain, folder, Path(str(distribution.locate_file(folder)))))
    found = [file for domain, folder, root in roots for file in _files_below(root, folder, domain)]
    return sorted(found, key=lambda file: _hash(file.id))


def examples(max_megabytes: float) -> Iterator[Example]:
    """The documents of all domains, at most `max_megabytes` (1e6 bytes of UTF-8) of each kind.

    The kinds are training prose (domain "prose"), held-out prose (the domains of HELD_OUT together) and "code". A
    paragraph that was there before, up to case, digits and white space, is left out; training prose goes first, so no
    held-out domain repeats a paragraph of it.
    """
    found = files()
    limit = max_megabytes * 1e6
    code = [f for f in found if f.domain == "prose" and _is_code(f.id)]
    training = [f for f in found if f.domain == "prose" and not _is_code(f.id)]
    held_out = [f for f in found if f.domain != "prose"]
    seen: set[bytes] = set()
    yield from capped(_prose(training, seen), limit)
    yield from capped(_prose(held_out, seen), limit)
    yield from capped(_code(code), limit)


def _packages() -> Iterator[tuple[str, str, str]]:
    for domain, packages in (("prose", TRAINING), *HELD_OUT.items()):
        for name, folder in packages:
            yield domain, name, folder


def _distribution(name: str) -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _files_below(root: Path, folder: str, domain: str) -> Iterator[File]:
    for parent, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not _SKIPPED_FOLDERS.fullmatch(name)]
        for name in names:
            path = Path(parent, name)
            if name.endswith(".py") and not _SKIPPED_FILES.fullmatch(name):
                yield File(f"{folder}/{path.relative_to(root).as_posix()}", path, domain, path.stat().st_size)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _is_code(file_id: str) -> bool:
    return _hash(f"kind of {file_id}") < _CODE_SHARE * 2**64


def _prose(found: Sequence[File], seen: set[bytes]) -> Iterator[Example]:
    for file, paragraphs in zip(found, _read_in_parallel([f.path for f in found]), strict=True):
        text = "\n\n".join(prose.fresh(paragraphs, seen))
        if text:
            yield Example(file.id, file.domain, text)


def _read_in_parallel(paths: Sequence[Path]) -> Iterator[list[str]]:
    """Paragraphs of each file in order, a process a core, only a little further than what is asked for."""
    workers = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[list[list[str]]]] = deque()
        try:
            for portion in _growing_portions(paths):
                ahead.append(pool.submit(prose.paragraphs_of_files, portion))
                if len(ahead) > workers:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _growing_portions(paths: Sequence[Path]) -> Iterator[Sequence[Path]]:
    begin, (size, largest) = 0, _FILES_A_PROCESS
    while begin < len(paths):
        yield paths[begin : begin + size]
        begin, size = begin + size, min(2 * size, largest)


def _code(found: Sequence[File]) -> Iterator[Example]:
    seen = set()
    for file in found:
        if file.bytes > _LARGEST_CODE_FILE:
            continue
        try:
            text = file.path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        content = hashlib.sha256(text.encode()).digest()
        if text.strip() and content not in seen and not _GENERATED.search(text[:2000]):
            seen.add(content)
            yield Example(file.id, "code", text)
