"""python scripts/train_references.py [group=choice] [key=value] ... --count N [--jobs J]: train reference models ahead.

Words are those of run.py. The models go to the store, each trained on one half of all training and test images; audits
that ask for references find them there, and train themselves what is missing. `--jobs` processes work at once, here or,
with the same command on the same store, on several machines: what one is making the others leave to it. The same
command continues where it stopped, and a larger `--count` keeps the models that are there.
"""

import argparse
import os
import signal
import subprocess
import sys
import time

from unlearn.configuration import composed
from unlearn.lab import Lab
from unlearn.loop import DivergedError
from unlearn.report.terminal import Progressing
from unlearn.settings import Count, SettingError, check


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("words", nargs="*", help="as for run.py")
    result.add_argument("--count", type=int, default=16, help="an even number of models")
    result.add_argument("--jobs", type=int, default=1, help="processes that train at once")
    return result


def several(jobs: int) -> int:
    """This command as `jobs` processes, the cores divided among them; the highest of their exit statuses."""
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    words = [*sys.argv[1:], "--jobs", "1"]  # of an option given twice, the last counts
    command = [sys.executable, __file__, *words]
    started = [subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": threads}) for _ in range(jobs)]
    try:
        return max(abs(process.wait()) for process in started)
    except KeyboardInterrupt:  # which they have been sent too, if it came from the keyboard
        for process in started:
            process.terminate()
        for process in started:
            process.wait()
        raise


def main() -> None:
    """Check the configuration, then train."""
    options = parser().parse_intermixed_args()
    progress = Progressing()
    try:
        check(Count, "--jobs", options.jobs)
        if check(Count, "--count", options.count) % 2:
            raise SettingError("--count", options.count, "must be even: models come in pairs, on the two halves")
        settings, _ = composed(options.words)
        lab = Lab(settings, progress)
        if options.jobs > 1:
            sys.exit(several(options.jobs))
        began = time.perf_counter()
        count = sum(1 for _ in lab.references(options.count))
        print(f"{count} reference models in {lab.store.root}, after {time.perf_counter() - began:.1f} s")
    except (SettingError, DivergedError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        sys.exit(130)
    finally:
        progress.close()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped job ends as after Ctrl-C
    main()
