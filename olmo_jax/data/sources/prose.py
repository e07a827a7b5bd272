"""Extract prose from the docstrings and comments of Python source.

Paragraphs are returned on one line each, without markup, and only if they read as English sentences: examples, tables,
directives, licences and commented-out code are left out.
"""

import ast
import gc
import hashlib
import inspect
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

MIN_WORDS = 5
_MIN_LETTER_SHARE = 0.8
_MIN_WORD_SHARE = 0.7

# A line that starts with '#' is a comment unless it is within a string; one pass over both distinguishes them, about
# ten times as fast as `tokenize`.
_STRING_OR_COMMENT = re.compile(
    r"(?P<comment>\#[^\n]*)"
    r'|"""(?:[^\\]|\\.)*?"""'
    r"|'''(?:[^\\]|\\.)*?'''"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'(?:[^'\\\n]|\\.)*'",
    re.DOTALL,
)

_RULE = re.compile(r"[-=~^\"'*#+.`_:<>]{3,}")
_TABLE = re.compile(r"[+|].*[+|]|[-=]{2,}(\s+[-=]{2,})+|.*\S(\s{3,}|\t)\S.*")
_DIRECTIVE = re.compile(r"\.\.(\s|$)")
_PROSE_DIRECTIVE = re.compile(
    r"\.\. (note|warning|important|tip|caution|attention|deprecated|version\w+)::\s*[\d.]*\s*"
)
_ITEM = re.compile(
    r"(?:[-*+•]|\(?[\divx]{1,3}[.)]|\[\w+\])\s+"  # a bullet, a number, a footnote
    r"|:\w+(?: [^:]*)?:\s+"  # :param name:
    r"|@\w+(?: \w+)?:\s*"
    r"|`{0,2}\*{0,2}[\w.]+`{0,2}(?: ?\([^)]*\))?\s?: +(?=[A-Z`])"  # name (type): What it is
)
_TYPED_NAME = re.compile(r"[`*\w.]+(?:, ?[`*\w.]+)* ?: ")
_ROLE = re.compile(r":[\w:+-]+:(?=`)")
_LINK = re.compile(r"`([^`<]*?)\s*<[^`>]*>`_{0,2}|\[([^\]]+)\]\([^)\s]*\)")
_QUOTED = re.compile(r"(`{1,2}|\*\*)~?(\S|\S[^`]*?\S)\1_{0,2}")

_LICENCE = re.compile(
    r"copyright|\blicen[sc](e|ed|es|ing)\b|all rights reserved|spdx-|redistribut|warrant(y|ies)\b|\"as is\"|"
    r"permission is hereby|\(c\) \d{4}|\w@\w",
    re.IGNORECASE,
)
_TOOL_NOTE = re.compile(r"(noqa|pylint|type:|pragma|fmt:|isort|mypy:|ruff:|-\*-|!)", re.IGNORECASE)
_CODE = re.compile(
    r"(?:[\w.\[\]'\",* ]+)\s*[-+*/|&]?=\s*\S.*"
    r"|(?:await |return |yield |del |assert |raise |print)\s*[\w.(\[].*[)\]\w]"
    r"|(?:if|elif|for|while|with|def|class|try|except|else|finally)\b.*:"
    r"|(?:import [\w.]+.*|from [\w.]+ import .+)"
    r"|@[\w.]+(?:\(.*\))?"
    r"|[\w.]+\(.*\)?[,;:]?"
    r"|.*[{}\[\](,;\\]"
)
_WORD = re.compile(r"[(\"']*[A-Za-z]+(?:['-][A-Za-z]+)*[)\"']*[.,;:!?]*[)\"']*")
# A text without any of these is a list of names, not a sentence.
_FUNCTION_WORD = re.compile(
    r"\b(?:the|an?|of|to|is|are|in|and|for|if|be|this|that|it|not|with|as|or|by|on|from|at|when|we|can|must|should)\b"
)


def paragraphs(source: str) -> list[str]:
    """Return the paragraphs of prose of a module, first those of docstrings, each on one line and without repetitions.

    Raises SyntaxError (or ValueError, for null bytes) if this interpreter can't parse `source`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about outdated escapes in other people's code
        tree = ast.parse(source)
    texts = [p for text in _docstrings(tree) for p in _from_docstring(text)]
    texts += [p for block in _comment_blocks(source) for p in _from_comments(block)]
    return list(dict.fromkeys(texts))


def paragraphs_of_files(paths: Sequence[Path]) -> list[list[str]]:
    """Return the `paragraphs` of each file, in order; [] for a file that isn't UTF-8 or can't be parsed.

    A separate process reads them by running this file as a filter: `multiprocessing` would import the caller's main
    module (and so jax) again, or fail if there is none.
    """
    filtered = subprocess.run(
        [sys.executable, "-I", __file__],
        input="".join(f"{path}\n" for path in paths),
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=True,
    )
    return [json.loads(line) for line in filtered.stdout.splitlines()]


def fresh(texts: Iterable[str], seen: set[bytes]) -> list[str]:
    """Return the paragraphs that aren't in `seen`, up to case, digits and white space, and add them to it."""
    kept = []
    for text in texts:
        key = hashlib.blake2b(re.sub(r"[\d\s]+", "", text).casefold().encode(), digest_size=12).digest()
        if key not in seen:
            seen.add(key)
            kept.append(text)
    return kept


def as_prose(text: str, min_words: int = MIN_WORDS) -> str:
    """Return `text`, a paragraph on one line, or "" if it doesn't read as English sentences or is about a licence."""
    words = text.split()
    if len(words) < min_words:
        return ""
    letters = sum(map(str.isalpha, text))
    if letters < _MIN_LETTER_SHARE * (len(text) - len(words) + 1):
        return ""
    if sum(_WORD.fullmatch(w) is not None for w in words) < _MIN_WORD_SHARE * len(words) or _LICENCE.search(text):
        return ""
    return text if _FUNCTION_WORD.search(text.lower()) else ""


def _docstrings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node, clean=True)
        if text:
            yield text
    # Definitions are only in the bodies of statements, which are a tenth of the tree.
    for field in ("body", "orelse", "handlers", "finalbody"):
        for child in getattr(node, field, ()):
            if hasattr(child, "body"):
                yield from _docstrings(child)


def _comment_blocks(source: str) -> Iterator[str]:
    """Yield blocks of consecutive comment lines with the same indentation, without the '#'."""
    block: list[str] = []
    last_end, last_column = -1, -1
    for match in _STRING_OR_COMMENT.finditer(source):
        if match.lastgroup != "comment":
            continue
        line_start = source.rfind("\n", 0, match.start()) + 1
        if source[line_start : match.start()].strip():
            continue
        column = match.start() - line_start
        if block and (line_start != last_end + 1 or column != last_column):
            yield inspect.cleandoc("\n" + "\n".join(block))
            block = []
        block.append(match.group().lstrip("#").rstrip())
        last_end, last_column = match.end(), column
    if block:
        yield inspect.cleandoc("\n" + "\n".join(block))


def _from_docstring(text: str) -> Iterator[str]:
    return (p for lines in _blocks(text) if (p := _clean(lines)))


def _from_comments(text: str) -> Iterator[str]:
    if _LICENCE.search(text):  # not all of its paragraphs would be recognised
        return
    for lines in _blocks(text):
        if any(_CODE.fullmatch(line) or _TOOL_NOTE.match(line) for line in lines):
            continue
        if paragraph := _clean(lines):
            yield paragraph


def _blocks(text: str) -> Iterator[list[str]]:
    """Yield paragraphs, split at blank lines and items, as stripped lines, without examples, literals and tables."""
    block: list[str] = []
    last_indent = 0
    skip_deeper: int | None = None  # inside a literal block or directive that began at this indentation
    example = False
    for raw in [*text.expandtabs(4).splitlines(), ""]:
        line, indent = raw.strip(), len(raw) - len(raw.lstrip())
        if not line:
            if block:
                yield block
            block, example = [], False
            continue
        if skip_deeper is not None:
            if indent > skip_deeper:
                continue
            skip_deeper = None
        if line.startswith((">>>", "In [", "$ ")):
            example = True
        if example:
            continue
        if _DIRECTIVE.match(line):
            if block:
                yield block
            block = []
            directive = _PROSE_DIRECTIVE.match(line)
            if not directive:
                skip_deeper = indent
            elif line[directive.end() :]:
                block, last_indent = [line[directive.end() :]], indent
            continue
        if _RULE.fullmatch(line):
            block = block[:-1]  # without the heading that it underlines
            if block:
                yield block
            block = []
            continue
        if _TABLE.fullmatch(line):
            block = []  # the rows above it looked like text
            continue
        item = _ITEM.match(line)
        deeper = indent > last_indent and block and _ends_heading(block[-1])
        if block and (item or indent < last_indent or deeper):
            yield block
            block = []
        if line.endswith("::"):
            skip_deeper, line = indent, line[:-1]
        block.append(line[item.end() :] if item else line)
        last_indent = indent
    if block:
        yield block


def _ends_heading(line: str) -> bool:
    """Return whether a line is a name, or a name and its type, that more deeply indented lines describe."""
    return bool(_TYPED_NAME.match(line)) or (len(line.split()) <= 3 and not line.endswith((".", ",")))


def _clean(lines: list[str]) -> str:
    """Return a paragraph on one line, without markup, or "" if it doesn't read as prose."""
    text = " ".join(" ".join(lines).split())
    text = _LINK.sub(lambda m: m.group(1) or m.group(2), _ROLE.sub("", text))
    text = _QUOTED.sub(r"\2", text).strip()
    return "" if _TYPED_NAME.match(text) else as_prose(text)


def _main() -> None:
    """Run the filter: read one path per line, write one JSON list of paragraphs per line."""
    gc.disable()  # syntax trees have no cycles to collect, and looking for some takes as long as parsing
    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    for path in sys.stdin.read().splitlines():
        try:
            texts = paragraphs(Path(path).read_text(encoding="utf-8"))
        except (SyntaxError, ValueError, RecursionError, OSError):
            texts = []
        print(json.dumps(texts))


if __name__ == "__main__":
    _main()
