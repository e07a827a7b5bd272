"""English prose from Debian packages: manuals, dictionaries, an essay, the Bible, mathematics, sayings.

The packages are fetched with `apt-get download`, which needs neither root nor an installation, kept as they are, and
unpacked as they are read. The same packages give the same examples in the same order; one that has been kept stays the
source, whatever Debian has published since.
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

VERSION = "1.0.0"  # of what the packages are turned into; a change of the text needs a new one
MIN_WORDS = 8
_LARGEST_EXAMPLE = 100_000  # bytes; a longer file becomes several examples
_WANTED_BY = "data.corpus 'debian_prose'"


class Package(NamedTuple):
    """A package and how it is read.

    Attributes:
      names: what it is called in one Debian release or another, best first.
      files: pattern that the paths of its files match, whole.
      read: from the text of a file, or of a section, to paragraphs.
      divide: from the text of a file that is a collection to sections; None for a file that is one text.
    """

    names: tuple[str, ...]
    files: str
    read: markup.Reader = markup.html
    divide: markup.Divider | None = None


class _Piece(NamedTuple):
    id: str
    source: Path | str  # a file not read yet, or a section of one
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
# About what a domain gives in all, in 1e6 bytes, for telling beforehand how much text there is.
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
    """What the corpus is made from: names and contents of the packages, fetched here if they aren't kept already.

    Raises DataError where a package is neither kept nor to be had.
    """
    found = {"debian_prose": VERSION, "max_megabytes": repr(max_megabytes)}
    for domain, packages in DOMAINS.items():
        for package in packages:
            deb = _fetched(domain, package)
            with deb.open("rb") as file:
                found[f"{domain}/{deb.name}"] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def examples(max_megabytes: float) -> Iterator[Example]:
    """The documents of all domains in turn, at most `max_megabytes` (1e6 bytes of UTF-8) of each.

    A document is a file, a chapter of the Bible or some dozens of entries, in paragraphs of at least MIN_WORDS words; a
    longer one than 100 kB is cut. Any beginning of a domain is an even sample of its files. A paragraph that was there
    before, up to case, digits and white space, is left out, in this domain and all after it.

    Raises DataError where a package is neither kept nor to be had, can't be unpacked, or holds none of its files.
    """
    seen: set[bytes] = set()
    for domain in DOMAINS:
        yield from capped(_domain(domain, seen), max_megabytes * 1e6)


def _domain(domain: str, seen: set[bytes]) -> Iterator[Example]:
    with tempfile.TemporaryDirectory(prefix="debian-prose-") as scratch:
        pieces: list[_Piece] = []
        for number, package in enumerate(DOMAINS[domain]):
            pieces += _pieces(package, _fetched(domain, package), Path(scratch, str(number)))
        for piece in sorted(pieces, key=lambda piece: hashlib.sha256(piece.id.encode()).digest()):
            text = _text(piece.source) if isinstance(piece.source, Path) else piece.source
            paragraphs = filter(None, (prose.as_prose(paragraph, MIN_WORDS) for paragraph in piece.read(text)))
            for number, text in enumerate(_portions(prose.fresh(paragraphs, seen))):
                yield Example(f"{piece.id}#{number}" if number else piece.id, domain, text)


def _fetched(domain: str, package: Package) -> Path:
    return downloads.debian_package(package.names, f"domain {domain!r} of {_WANTED_BY}")


def _pieces(package: Package, deb: Path, scratch: Path) -> list[_Piece]:
    """The texts of a package, as yet unread unless they are sections of a file."""
    found: list[_Piece] = []
    for name, path in _unpacked(deb, package.files, scratch):
        at = f"{deb.name.partition('_')[0]}/{name}"
        if package.divide is None:
            found.append(_Piece(at, path, package.read))
        else:
            sections = enumerate(package.divide(_text(path)))
            found += [_Piece(f"{at}/{number:05d}", section, package.read) for number, section in sections]
    return found


def _unpacked(deb: Path, pattern: str, scratch: Path) -> list[tuple[str, Path]]:
    """Name in the package and place on disk of each regular file that matches."""
    if shutil.which("dpkg-deb") is None:
        raise DataError(f"{_WANTED_BY} needs dpkg-deb, which isn't here; choose another corpus, or run on Debian")
    scratch.mkdir()
    found: list[tuple[str, Path]] = []
    command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as unpacking:
        assert unpacking.stdout and unpacking.stderr
        broken = ""
        try:
            with tarfile.open(fileobj=unpacking.stdout, mode="r|") as archive:
                for member in archive:
                    if member.isfile() and re.fullmatch(pattern, member.name):
                        # Under a number: no name in an archive decides where a file is written.
                        found.append((member.name.removeprefix("./"), scratch / str(len(found))))
                        found[-1][1].write_bytes(archive.extractfile(member).read())  # type: ignore[union-attr]
        except tarfile.TarError as error:
            broken = str(error)
        unpacking.stdout.read()  # what is left, or dpkg-deb waits, or complains that nobody takes it
        said = unpacking.stderr.read().decode(errors="replace").strip() or broken
    if said or not found:
        why = f"can't be unpacked ({said.splitlines()[-1]})" if said else f"holds no file like {pattern}"
        raise DataError(f"{deb}: {why}; remove it, and it is fetched again")
    return found


def _text(path: Path) -> str:
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
    """Paragraphs joined to texts of at most `_LARGEST_EXAMPLE` bytes, or of one paragraph."""
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
