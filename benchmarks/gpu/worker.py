"""Train a single model on random tokens, as one of the processes that benchmarks/gpu/parts/processes.py starts.

`python -m benchmarks.gpu.worker CASE`, CASE being training.case_of's JSON. It reads a number of calls per line, makes
them, and writes the seconds that they took.
"""

import json
import sys

from benchmarks.gpu import training


def main() -> None:
    ours = training.stack(json.loads(sys.argv[1]), members=1)
    for line in sys.stdin:
        print(sum(ours.seconds() for _ in range(int(line))), flush=True)


if __name__ == "__main__":
    main()
