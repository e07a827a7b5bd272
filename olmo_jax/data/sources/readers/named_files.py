"""Find the files that a path or pattern given by the user matches."""

import itertools
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from olmo_jax.data import DataError
from olmo_jax.storage import paths
from olmo_jax.storage.paths import printable

_LOOKED_AT = 10_000  # files in a folder, to find the most common kind


def named_files(pattern: str, kind: Callable[[str], str]) -> list[Path]:
    """Return the files that a path or a pattern (see paths.matching) matches.

    Files that a pattern matches are skipped if they can't be read and their names are those of other tools' files:
    hidden ones, names that begin with "_" (Spark's _SUCCESS) and checksums. Folders are skipped, too.

    Args:
      kind: a function that returns "" for the name of a file that can't be read.

    Raises DataError for a path that is a folder or no file, a broken link, and a pattern that matches no file.
    """
    matches = paths.matching(pattern)
    key = f"data.files: {printable(pattern)!r}"
    for path in matches:
        if path.is_symlink() and not path.exists():
            target = printable(os.readlink(path))
            raise DataError(f"{printable(path)}: is a link to {target}, which doesn't exist; fetch it or fix the link")
    exact = matches == [paths.local(pattern)]
    if exact and matches[0].is_dir():
        raise DataError(f"{key} is a folder; {_remedy(matches[0], kind)}")
    files = [path for path in matches if path.is_file()]
    kept = [path for path in files if exact or kind(path.name) or not _left_by_tools(path.name)]
    if kept:
        return kept
    if not matches:
        raise DataError(f"{key} matches no file (the current folder is {printable(Path.cwd())}); correct the path")
    if files:
        raise DataError(f"{key} matches only files such as {printable(files[0].name)}, which hold no text; change it")
    folder = next((path for path in matches if path.is_dir()), None)
    if folder is None:
        raise DataError(f"{key} is neither a file nor a folder; write its contents to a file and give that")
    raise DataError(f"{key} matches no file, only folders such as {printable(folder)}; {_remedy(folder, kind)}")


def _left_by_tools(name: str) -> bool:
    return name.startswith((".", "_")) or name.endswith(".crc")


def _remedy(folder: Path, kind: Callable[[str], str]) -> str:
    """Return advice for a folder: the pattern that matches most files in it."""
    walk = ((Path(parent), name) for parent, _, names in os.walk(folder) for name in names)
    entries = list(itertools.islice(walk, _LOOKED_AT))
    if not entries:
        return "it is empty, so give another"
    endings = Counter((parent != folder, name[-len(kind(name)) :]) for parent, name in entries if kind(name))
    if not endings:
        return "it holds no file that can be read (.txt, .jsonl, .json or .parquet), so give another"
    (deeper, ending), _ = endings.most_common(1)[0]
    return f"give {printable(folder / ('**/*' if deeper else '*'))}{ending}"
