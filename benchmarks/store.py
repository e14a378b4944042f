"""What the store saves: the same `python run.py` twice in a temporary store, everything made and then everything read.

python benchmarks/store.py [key=value] ...

Words on the command line go to `run.py`, for another data set or a longer training.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUN = Path(__file__).resolve().parents[1] / "run.py"


def timed(folder: str, words: list[str]) -> float:
    """Seconds of one run, from the start of the interpreter to its exit."""
    command = [sys.executable, str(RUN), "store=store", "wandb.mode=disabled", *words]
    environment = {"UNLEARN_DATA": str(RUN.parent / "data")} | os.environ
    began = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    words = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        first, second = (timed(folder, words) for _ in range(2))
    print(f"python run.py {' '.join(words)}".rstrip())
    print(f"{'run':<28} {'seconds':>8}")
    print(f"{'first, everything is made':<28} {first:>8.2f}")
    print(f"{'again, everything is read':<28} {second:>8.2f}")
    print(f"{'ratio':<28} {first / second:>8.2f}")


if __name__ == "__main__":
    main()
