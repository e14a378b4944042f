"""Reference models an hour: one by one with all cores, against several at once with a share of them each.

python benchmarks/references.py [key=value] ...

Words on the command line go to `scripts/train_references.py`, for another data set or model. Every way trains the same
models in a store of its own, from the start of the interpreter to its exit.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "train_references.py"
COUNT = 8


def hourly(jobs: int, words: list[str]) -> float:
    """Models an hour when `jobs` processes train."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--count", str(COUNT), "--jobs", str(jobs)]
        command = [sys.executable, str(SCRIPT), f"store={folder}", "wandb.mode=disabled", *words, *options]
        environment = {"UNLEARN_DATA": str(SCRIPT.parents[1] / "data")} | os.environ
        began = time.perf_counter()
        subprocess.run(command, env=environment, check=True, capture_output=True)
        made = len(list(Path(folder).glob("originals/*/done.json")))
        if made != COUNT:
            raise RuntimeError(f"{made} models were made, and {COUNT} asked for")
        return 3600 * COUNT / (time.perf_counter() - began)


def main() -> None:
    words = sys.argv[1:]
    cores = os.cpu_count() or 1
    print(f"python scripts/train_references.py {' '.join(words)} --count {COUNT}, {cores} cores")
    print(f"{'processes':<12} {'models an hour':>15} {'ratio':>6}")
    alone = hourly(1, words)
    for jobs in sorted({1, cores, 2 * cores}):
        rate = alone if jobs == 1 else hourly(jobs, words)
        print(f"{jobs:<12} {rate:>15.0f} {rate / alone:>6.2f}", flush=True)


if __name__ == "__main__":
    main()
