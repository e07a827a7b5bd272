"""Check whether processes started by a test have ended."""

import time
from pathlib import Path


def ended(pid):
    """Return whether a process ends within 20 seconds; a zombie that awaits collection counts as ended."""
    for _ in range(200):
        try:
            if "(zombie)" in Path(f"/proc/{pid}/status").read_text():
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.1)
    return False
