import subprocess
import sys


def test_count_names_match_the_probe_and_import_without_jax():
    code = """
import sys
from geometry.counts import COUNTS
named = set(COUNTS)
assert "jax" not in sys.modules
COUNTS.clear()
import geometry.probe
print(sorted(COUNTS) == sorted(named) and COUNTS <= geometry.probe.METRICS.keys())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
