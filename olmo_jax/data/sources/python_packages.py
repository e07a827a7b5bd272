"""A corpus that needs no download: the Python files of the standard library and of installed packages.

Docstrings and comments of most files are prose; the others are used as code. The same versions of the same packages
give the same examples in the same order.
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
from olmo_jax.execution.cores import cores

VERSION = "1.0.0"  # of the text that is made from the files; raise it if that changes

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

# Tests are repetitive, vendored code belongs to other packages, and the rest is generated.
_SKIPPED_FOLDERS = re.compile(
    r"tests?|_?testing|idle_test|internal_test_util|_generated|(site|dist)-packages|__pycache__|_?vendor|_bundled|"
    r"encodings|pydoc_data|lib2to3|lib-dynload|graph_objs|validators"
)
_SKIPPED_FILES = re.compile(r"_sysconfigdata.*|__config__\.py|_?version\w*\.py|.*_test\.py|test_.*\.py")
# A file is used for prose or for code, never for both: code contains docstrings, so a model fine-tuned on code would
# see validation text of the prose.
_CODE_SHARE = 0.2
_LARGEST_CODE_FILE = 200_000
_GENERATED = re.compile(r"(?i)(auto-?)?generated (by|from|file|automatically)|do not (edit|modify)")
_FILES_PER_PROCESS = (16, 128)  # at first, so that a small limit is reached soon, and at most


class File(NamedTuple):
    id: str  # "numpy/linalg/_linalg.py"
    path: Path
    domain: str
    bytes: int


def sources(max_megabytes: float) -> dict[str, str]:
    """Return what identifies the corpus, without reading it: versions, and a hash of the names and sizes of files.

    Sizes are included since the standard library of one version differs between systems.
    """
    described = {"python_packages": VERSION, "python": platform.python_version(), "max_megabytes": repr(max_megabytes)}
    for domain, name, folder in _packages():
        distribution = _distribution(name)
        if distribution is not None:
            described[f"{domain}/{folder}"] = distribution.version
    listing = "".join(f"{f.domain} {f.id} {f.bytes}\n" for f in files())
    return described | {"files": hashlib.sha256(listing.encode()).hexdigest()}


def files() -> list[File]:
    """Return the files of the corpus, sorted by a hash of their ids, so that the first ones are a random sample."""
    roots = [("prose", "python", Path(sysconfig.get_paths()["stdlib"]))]
    for domain, name, folder in _packages():
        distribution = _distribution(name)
        if distribution is not None:
            roots.append((domain, folder, Path(str(distribution.locate_file(folder)))))
    unsorted = [file for domain, folder, root in roots for file in _files_below(root, folder, domain)]
    return sorted(unsorted, key=lambda file: _hash(file.id))


def examples(max_megabytes: float) -> Iterator[Example]:
    """Yield the documents of all domains, at most `max_megabytes` (1e6 bytes of UTF-8) of each kind.

    The kinds are training prose (domain "prose"), held-out prose (all domains of HELD_OUT) and "code". Repeated
    paragraphs, up to case, digits and white space, are left out; training prose comes first, so no held-out domain
    contains a paragraph of it.
    """
    all_files = files()
    limit = max_megabytes * 1e6
    code = [f for f in all_files if f.domain == "prose" and _is_code(f.id)]
    training = [f for f in all_files if f.domain == "prose" and not _is_code(f.id)]
    held_out = [f for f in all_files if f.domain != "prose"]
    seen: set[bytes] = set()
    yield from capped(_prose(training, seen), limit)
    yield from capped(_prose(held_out, seen), limit)
    yield from capped(_code(code), limit)


def missing() -> list[str]:
    """Return the distributions that the corpus would use and that aren't installed."""
    return [name for _, name, _ in _packages() if _distribution(name) is None]


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


def _prose(chosen: Sequence[File], seen: set[bytes]) -> Iterator[Example]:
    for file, paragraphs in zip(chosen, _read_in_parallel([f.path for f in chosen]), strict=True):
        text = "\n\n".join(prose.fresh(paragraphs, seen))
        if text:
            yield Example(file.id, file.domain, text)


def _read_in_parallel(paths: Sequence[Path]) -> Iterator[list[str]]:
    """Yield the paragraphs of each file in order, read by one process per core, a little ahead of the caller."""
    workers = min(8, cores())
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
    begin, (size, largest) = 0, _FILES_PER_PROCESS
    while begin < len(paths):
        yield paths[begin : begin + size]
        begin, size = begin + size, min(2 * size, largest)


def _code(chosen: Sequence[File]) -> Iterator[Example]:
    seen = set()
    for file in chosen:
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
