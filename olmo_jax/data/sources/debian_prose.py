"""English prose from Debian packages: manuals, dictionaries, an essay, the Bible, mathematics, sayings.

The packages are fetched with `apt-get download`, which needs no root and installs nothing, and are kept in the cache.
The same packages give the same examples in the same order; a package in the cache is used even if Debian has published
a newer one.
"""

import gzip
import hashlib
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from olmo_jax.data import DataError
from olmo_jax.data.sources import downloads, markup, prose
from olmo_jax.data.sources.example import Example, capped

VERSION = "1.0.0"  # of the text that is made from the packages; raise it if that changes
MIN_WORDS = 8
_LARGEST_EXAMPLE = 100_000  # bytes; a longer document becomes several examples
_WANTED_BY = "data.corpus 'debian_prose'"


class Package(NamedTuple):
    """A package and how it is read.

    Attributes:
      names: its names in different Debian releases, in order of preference.
      files: a pattern that matches the whole paths of the files that are read.
      read: returns the paragraphs of a file, or of a section of one.
      divide: returns the sections of a file that is a collection; None if files are texts.
    """

    names: tuple[str, ...]
    files: str
    read: markup.Reader = markup.html
    divide: markup.Divider | None = None


class _Text(NamedTuple):
    id: str
    source: Path | str  # a file to be read, or the text of a section
    read: markup.Reader


DOMAINS: dict[str, tuple[Package, ...]] = {
    "bible": (Package(("bible-kjv-text",), r".*/bible\.data", markup.lines, markup.bible_chapters),),
    "dictionary": (
        Package(("dict-gcide",), r".*/gcide\.dict\.dz", markup.plain, markup.dictd_entries),
        Package(("wordnet-base",), r".*/wordnet/data\.\w+", markup.lines, markup.wordnet_entries),
    ),
    "essay": (Package(("anarchism",), r".*\.html"),),
    "maths": (
        Package(("metamath-databases",), r".*/\w*set\.mm|.*/nf\.mm", markup.plain, markup.metamath_comments),
        Package(("gap-doc",), r".*/chap[^/]*\d\.html"),
        Package(("maxima-doc",), r".*/html/maxima_\d+\.html"),
    ),
    "policy": (Package(("debian-policy",), r".*\.html"), Package(("developers-reference",), r".*\.html")),
    "quotes": (
        Package(("fortunes",), r".*/fortunes/[\w-]+", markup.plain, markup.fortunes),
        Package(("fortunes-min",), r".*/fortunes/[\w-]+", markup.plain, markup.fortunes),
    ),
    "technical_git": (Package(("git-doc",), r".*\.html"),),
    "technical_linux": (
        Package(
            ("linux-doc-6.1", "linux-doc-6.12", "linux-doc"),
            r"(?!.*/(?:translations|_sources)/).*/html/.*(?<!genindex)\.html",
        ),
    ),
    "technical_perl": (Package(("perl-doc",), r".*\.pod", markup.pod),),
    "technical_postgresql": (
        Package(tuple(f"postgresql-doc-{release}" for release in (15, 17, 16, 14, 18)), r".*/html/.*\.html"),
    ),
    "technical_python": (
        Package(
            tuple(f"python3.{release}-doc" for release in (11, 13, 12, 10, 14)),
            r"(?!.*/whatsnew/changelog)(?!.*/genindex).*/html/.*\.html",
        ),
    ),
    "technical_qt": (Package(("qtbase5-doc-html", "qt6-base-doc-html"), r".*(?<!-members)\.html"),),
    "technical_rust": (
        Package(
            ("rust-doc",),
            r".*/html/(?:book|cargo|edition-guide|embedded-book|error_codes|nomicon|reference|rust-by-example|rustc"
            r"|rustdoc|std)/.*(?<!/print)\.html",
        ),
    ),
}
# The approximate size of each domain in 1e6 bytes, to estimate sizes before anything is fetched.
MEGABYTES = {
    "bible": 4.1,
    "dictionary": 31.4,
    "essay": 11.2,
    "maths": 6.4,
    "policy": 0.7,
    "quotes": 2.3,
    "technical_git": 2.2,
    "technical_linux": 17.5,
    "technical_perl": 4.8,
    "technical_postgresql": 5.1,
    "technical_python": 6.6,
    "technical_qt": 6.5,
    "technical_rust": 3.1,
}


def sources(max_megabytes: float) -> dict[str, str]:
    """Return what identifies the corpus: names and hashes of the packages, which are fetched if they aren't cached.

    Raises DataError for a package that is not in the cache and can't be fetched.
    """
    described = {"debian_prose": VERSION, "max_megabytes": repr(max_megabytes)}
    for domain, packages in DOMAINS.items():
        for package in packages:
            deb = _fetched(domain, package)
            with deb.open("rb") as file:
                described[f"{domain}/{deb.name}"] = hashlib.file_digest(file, "sha256").hexdigest()
    return described


def examples(max_megabytes: float) -> Iterator[Example]:
    """Yield the documents of all domains, one domain after the other, at most `max_megabytes` (1e6 bytes) of each.

    A document is a file, a chapter of the Bible or a few dozen entries, in paragraphs of at least MIN_WORDS words; one
    longer than 100 kB is cut. The files of a domain are ordered by hash, so the first ones are a random sample.
    Paragraphs that are repeated, in any domain and up to case, digits and white space, are left out.

    Raises DataError for a package that can't be fetched or unpacked, or contains no file that matches.
    """
    seen: set[bytes] = set()
    for domain in DOMAINS:
        yield from capped(_domain(domain, seen), max_megabytes * 1e6)


def _domain(domain: str, seen: set[bytes]) -> Iterator[Example]:
    with tempfile.TemporaryDirectory(prefix="debian-prose-") as scratch:
        texts: list[_Text] = []
        for number, package in enumerate(DOMAINS[domain]):
            texts += _texts(package, _fetched(domain, package), Path(scratch, str(number)))
        for item in sorted(texts, key=lambda item: hashlib.sha256(item.id.encode()).digest()):
            text = _decoded(item.source) if isinstance(item.source, Path) else item.source
            paragraphs = filter(None, (prose.as_prose(paragraph, MIN_WORDS) for paragraph in item.read(text)))
            for number, text in enumerate(_portions(prose.fresh(paragraphs, seen))):
                yield Example(f"{item.id}#{number}" if number else item.id, domain, text)


def _fetched(domain: str, package: Package) -> Path:
    return downloads.debian_package(package.names, f"domain {domain!r} of {_WANTED_BY}")


def _texts(package: Package, deb: Path, scratch: Path) -> list[_Text]:
    """Return the texts of a package; those that are whole files are not read yet."""
    texts: list[_Text] = []
    for name, path in _unpacked(deb, package.files, scratch):
        at = f"{deb.name.partition('_')[0]}/{name}"
        if package.divide is None:
            texts.append(_Text(at, path, package.read))
        else:
            sections = enumerate(package.divide(_decoded(path)))
            texts += [_Text(f"{at}/{number:05d}", section, package.read) for number, section in sections]
    return texts


def _unpacked(deb: Path, pattern: str, scratch: Path) -> list[tuple[str, Path]]:
    """Unpack the regular files that match; return for each its name in the package and its path on disk."""
    if shutil.which("dpkg-deb") is None:
        raise DataError(f"{_WANTED_BY} needs dpkg-deb, which isn't installed; choose another corpus, or run on Debian")
    scratch.mkdir()
    unpacked: list[tuple[str, Path]] = []
    command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as unpacking:
        assert unpacking.stdout and unpacking.stderr
        broken = ""
        try:
            with tarfile.open(fileobj=unpacking.stdout, mode="r|") as archive:
                for member in archive:
                    if member.isfile() and re.fullmatch(pattern, member.name):
                        # Files are named by number: a name in an archive could lead out of the folder.
                        unpacked.append((member.name.removeprefix("./"), scratch / str(len(unpacked))))
                        unpacked[-1][1].write_bytes(archive.extractfile(member).read())  # type: ignore[union-attr]
        except tarfile.TarError as error:
            broken = str(error)
        unpacking.stdout.read()  # the rest, or dpkg-deb would block or report a broken pipe
        problem = unpacking.stderr.read().decode(errors="replace").strip() or broken
    if problem or not unpacked:
        why = f"can't be unpacked ({problem.splitlines()[-1]})" if problem else f"contains no file matching {pattern}"
        raise DataError(f"{deb}: {why}; remove it, and it will be fetched again")
    return unpacked


def _decoded(path: Path) -> str:
    raw = path.read_bytes()
    if raw.startswith(b"\x1f\x8b"):
        raw = gzip.decompress(raw)
    if raw.startswith(markup.BIBLE_MAGIC):
        return markup.bible_text(raw)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _portions(paragraphs: Sequence[str]) -> Iterator[str]:
    """Yield texts of joined paragraphs, of at most `_LARGEST_EXAMPLE` bytes or one paragraph."""
    portion: list[str] = []
    size = 0
    for paragraph in paragraphs:
        length = len(paragraph.encode()) + 2
        if portion and size + length > _LARGEST_EXAMPLE:
            yield "\n\n".join(portion)
            portion, size = [], 0
        portion.append(paragraph)
        size += length
    if portion:
        yield "\n\n".join(portion)
