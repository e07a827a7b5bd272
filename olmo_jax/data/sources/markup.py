"""Extract paragraphs from file formats of documentation, without markup, each on one line.

A reader turns a text into paragraphs; a divider cuts a collection of entries into texts of a few dozen entries.
`prose.as_prose` selects the paragraphs that are prose.
"""

import html as entities
import re
import struct
import subprocess
from collections.abc import Callable, Iterable, Sequence

Reader = Callable[[str], list[str]]
Divider = Callable[[str], list[str]]

_ENTRIES_PER_TEXT = 50

# Patterns suffice, as the pages are from a few generators and well-formed; html.parser would take ten times as long.
_HTML_LEFT_OUT = re.compile(
    r"<!--.*?-->|<(head|script|style|pre|nav|svg|math|button)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE
)
_HTML_INLINE = re.compile(
    r"</?(?:a|abbr|acronym|b|bdi|cite|code|del|dfn|em|font|i|img|ins|kbd|mark|q|s|samp|small|span|strong|sub|sup|tt|u"
    r"|var|wbr)\b[^>]*>",
    re.IGNORECASE,
)
_HTML_BREAK = re.compile(r"<br\b[^>]*>", re.IGNORECASE)
_HTML_TAG = re.compile(r"<[!?/a-zA-Z][^>]*>")
_PILCROW = re.compile("[¶\u200b\u00ad]|\uf0c1")  # signs of links to headings, and marks where a word may break

_HTML_NAVIGATION = re.compile(r"(?:Next|Previous|Prev|Up): |‹ |.* ›$")

_POD_INDEX = re.compile(r"[XZ]<[^<>]*>")
_POD_WIDE = re.compile(r"[A-Z](<{2,})\s(.*?)\s>{2,}")
_POD_LINK = re.compile(r"L<([^<>|]*)\|[^<>]*>")
_POD_CODE = re.compile(r"[A-Z]<((?:[^<>]|(?<![A-Z])<)*)>")  # a "<" that follows no capital is a plain character
_POD_ESCAPE = re.compile(r"E<(\w+)>")

_DICTD = (
    (re.compile(r"\s?\\[^\\\n]*\\,?"), ","),  # pronunciation: \Af*fect"\,
    (re.compile(r"\s?\([^()\s]*\"[^()\s]*\)(?=,)"), ""),  # pronunciation: (r[a^]s"p[y^])
    (re.compile(r"\[[^\[\]]*\]"), ""),
    (re.compile(r"\[[^\[\]]*\]|[{}]"), ""),  # brackets that contained others
    (re.compile(r"(?m)^( *)(?:\d+\.|\([a-z]\)) "), r"\1"),
)

_METAMATH_COMMENT = re.compile(r"\$\(\s(.*?)\s\$\)", re.DOTALL)
_METAMATH_CREDIT = re.compile(r"\([^()]*\b\d{1,2}-[A-Z][a-z]{2}-\d{4}[^()]*\)|\([^()]*is discouraged\.\)")
_METAMATH_SIGN = re.compile(r"[`~\[\]]|\b_|_\b|</?[A-Za-z][^<>]*>|\s+(?=[.,;:)](?:\s|$))")

_VERSE = re.compile(r"^((?:[1-3]\s?)?[A-Z][a-z]+\d+):\d+ (.+)$", re.MULTILINE)
BIBLE_MAGIC = b"EC02Compressed Data File"


def html(text: str) -> list[str]:
    """Return paragraphs, list items, headings and cells of an HTML page, without preformatted text and navigation."""
    text = _HTML_INLINE.sub("", _HTML_LEFT_OUT.sub("<p>", text))
    blocks = _HTML_TAG.split(_HTML_BREAK.sub(" ", text))
    texts = _lines(_PILCROW.sub("", entities.unescape(block)) for block in blocks)
    return [line for line in texts if not _HTML_NAVIGATION.match(line)]


def pod(text: str) -> list[str]:
    """Return paragraphs of Perl's "plain old documentation", without verbatim blocks and commands."""
    blocks = re.split(r"\n\s*\n", text)
    return _lines(_without_pod_codes(b) for b in blocks if not b.startswith((" ", "\t", "=")))


def plain(text: str) -> list[str]:
    """Return the paragraphs between blank lines."""
    return _lines(re.split(r"\n\s*\n", text))


def lines(text: str) -> list[str]:
    """Return the lines, each as a paragraph."""
    return _lines(text.splitlines())


def dictd_entries(text: str) -> list[str]:
    """Return groups of entries of a dictionary for dictd (GCIDE), without pronunciation, sources and etymology."""
    for pattern, instead in _DICTD:
        text = pattern.sub(instead, text)
    return _groups(re.split(r"\n\s*\n(?=\S)", text))


def wordnet_entries(text: str) -> list[str]:
    """Return groups of glosses of WordNet, one per line: `word: its meaning; "an example"`."""
    glosses = []
    for line in text.splitlines():
        head, bar, gloss = line.partition(" | ")
        if bar and not line.startswith(" "):
            glosses.append(f"{head.split(maxsplit=5)[4].replace('_', ' ')}: {gloss.strip()}")
    return _groups(glosses, "\n")


def metamath_comments(text: str) -> list[str]:
    """Return groups of comments of a Metamath database, without credits and markup, but with formulas."""
    comments = (_METAMATH_CREDIT.sub("", comment) for comment in _METAMATH_COMMENT.findall(text))
    return _groups([_METAMATH_SIGN.sub("", comment) for comment in comments])


def fortunes(text: str) -> list[str]:
    """Return groups of the sayings in a fortune file."""
    return _groups(re.split(r"(?m)^%\n", text))


def bible_chapters(text: str) -> list[str]:
    """Return the chapters of lines "Ge1:1 In the beginning ...", one verse per line, without the numbers."""
    chapters: dict[str, list[str]] = {}
    for name, verse in _VERSE.findall(text):
        chapters.setdefault(name, []).append(verse)
    return ["\n".join(verses) for verses in chapters.values()]


def bible_text(packed: bytes) -> str:
    """Return the text of Debian's bible.data: a table of blocks of 64 KiB, compressed by `compress`, without headers.

    The gzip program decompresses them; Python's standard library can't.
    """
    (count,) = struct.unpack_from(">I", packed, 0x58)
    starts = [*struct.unpack_from(f">{count}I", packed, 0x5C), len(packed)]
    blocks = (b"\x1f\x9d\x90" + packed[begin:end] for begin, end in zip(starts[:-1], starts[1:], strict=True))
    unpacked = (subprocess.run(["gzip", "-dc"], input=b, capture_output=True, check=False).stdout for b in blocks)
    return b"".join(unpacked).decode("latin-1")


def _without_pod_codes(text: str) -> str:
    text = _POD_ESCAPE.sub(r"&\1;", _POD_INDEX.sub("", text))
    text = _POD_WIDE.sub(r"\2", text)
    text = _POD_LINK.sub(r"\1", text)
    for _ in range(4):  # codes within codes
        text = _POD_CODE.sub(r"\1", text)
    return entities.unescape(text)


def _groups(entries: Sequence[str], between: str = "\n\n") -> list[str]:
    portions = (entries[i : i + _ENTRIES_PER_TEXT] for i in range(0, len(entries), _ENTRIES_PER_TEXT))
    return [between.join(portion) for portion in portions]


def _lines(blocks: Iterable[str]) -> list[str]:
    return [line for block in blocks if (line := " ".join(block.split()))]
