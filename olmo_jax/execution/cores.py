"""The cores of this machine that this process may use."""

import os


def cores() -> int:
    """Return their number, which `taskset` and a cluster's scheduler may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
