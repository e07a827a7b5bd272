"""Whether processes that a test has started are still there."""

import time
from pathlib import Path


def ended(pid):
    """Whether a process ends within 20 seconds; a zombie, which waits for some init to collect it, has ended."""
    for _ in range(200):
        try:
            if "(zombie)" in Path(f"/proc/{pid}/status").read_text():
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.1)
    return False
