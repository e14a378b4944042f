"""python run.py [group=choice] [key=value] ...: compose one configuration, make what it needs, print and keep its row.

`python run.py --help` lists the groups; `-m` sweeps over several values; the last line printed is the row's file.
"""

import math
import os
import signal
import sys
import traceback

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # The imports below take seconds, and nothing can be lost in them
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b"interrupted\n"), os._exit(130)))

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from unlearn import track
from unlearn.complaints import complaint, end, plain
from unlearn.configuration import debugging, resolved
from unlearn.lab import Lab
from unlearn.loop import DivergedError
from unlearn.report.terminal import OutputError, Progressing, show_all
from unlearn.row import row
from unlearn.settings import SettingError


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """One configuration in, one audited row out; returns the objective, for sweepers: NaN if it has no value."""
    job = HydraConfig.get()
    progress = Progressing()
    try:
        lab = Lab(resolved(cfg), progress)
        document, file = row(lab, job.runtime.choices, list(job.overrides.task))
        progress.close()
        track.mirror(document, lab, job.runtime.choices)
        show_all(document, lab.metrics, file)
    except (SettingError, DivergedError, OutputError) as error:
        if debugging(cfg):
            raise
        if job.mode is not RunMode.MULTIRUN:
            end(error)
        print(f"error: {error}", file=sys.stderr)
        # The other jobs go on, and Hydra reports the failure at the end
        raise CompactHydraException(str(error)) from None
    except Exception:
        if job.mode is RunMode.MULTIRUN:  # another process is handed the error, but not where it came from
            traceback.print_exc()
        raise
    finally:
        progress.close()
    return document["metrics"]["unlearned"].get(lab.settings["objective"] or "average_gap", math.nan)


if __name__ == "__main__":
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors out, instead of printing several lines
    try:
        sys.argv[1:] = plain(sys.argv[1:])
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped job ends as after Ctrl-C
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        main()
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        said = complaint(error, sys.argv[1:])
        if said is None:
            raise
        end(said)
