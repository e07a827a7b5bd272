"""The number of cores that this process may use."""

import os


def cores() -> int:
    """Return the number of cores that this process may use; `taskset` and a cluster's scheduler may limit it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
