"""python run.py [group=choice] [key=value] ...: compose one configuration, make what it needs, print and keep its row.

`python run.py --help` lists the groups; `-m` sweeps over several values; the last line printed is the row's file.
"""

import errno
import math
import os
import re
import signal
import sys
import traceback
from contextlib import suppress
from typing import Any

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # The imports below take seconds, and nothing can be lost in them
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b"interrupted\n"), os._exit(130)))

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from unlearn import track
from unlearn.checks import CHOSEN, check_word, refusal
from unlearn.configuration import composed
from unlearn.lab import Lab
from unlearn.loop import DivergedError
from unlearn.report.terminal import Progressing, show
from unlearn.row import row
from unlearn.settings import SettingError
from unlearn.store import FULL

SINGLE = {*CHOSEN, "experiment"} - {"auditor"}


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """One configuration in, one audited row out; returns the objective, for sweepers: NaN if the method diverged."""
    job = HydraConfig.get()
    progress = Progressing()
    try:
        try:
            settings: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        except MissingMandatoryValue as error:
            raise SettingError(str(error.full_key), "???", "must be given") from error
        lab = Lab(settings, progress)
        document, file = row(lab, job.runtime.choices, list(job.overrides.task))
    except (SettingError, DivergedError) as error:
        if cfg.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        if job.mode is RunMode.MULTIRUN:  # the other jobs go on, and Hydra reports the failure at the end
            raise CompactHydraException(str(error)) from None
        sys.exit(2)
    except Exception:
        if job.mode is RunMode.MULTIRUN:  # another process is handed the error, but not where it came from
            traceback.print_exc()
        raise
    finally:
        progress.close()
    track.mirror(document, lab, job.runtime.choices)
    show(document, lab.metrics)
    print(file, flush=True)
    return document["metrics"]["unlearned"].get(cfg.objective, math.nan)


def not_null(word: str) -> str:
    """A word of the command line, which must not be `group=null`: Hydra's traceback at that comes before `main`.

    Nor may it lead out of the folders of choices. Of a group that is null by default it becomes Hydra's own way to say
    so, `~group`, and of `experiment`, whose name others are composed by, `none`. A list of choices is for auditors
    alone.
    """
    group, _, value = word.partition("=")
    listed = group in SINGLE and value.startswith("[")
    if listed or (group in CHOSEN and "null" in value.strip("[]").lower().split(",")):
        print(f"error: {refusal(group, value)}", file=sys.stderr)
        sys.exit(2)
    try:
        check_word(word)
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if value.lower() != "null":
        return word
    return {"experiment": "experiment=none", "sweep": "~sweep", "cluster": "~cluster"}.get(group, word)


def one_line(error: Exception, words: list[str]) -> str:
    """What Hydra says of a word that it cannot make sense of, with the keys there are and without its advice."""
    said, _, _ = str(error).partition("Config search path")
    lines = [line for line in said.splitlines() if not line.startswith(("See https://hydra.cc", "To append"))]
    if found := re.match(r"Could not override '(.+)'", said):
        others = [word for word in words if not word.lstrip("+~").startswith(found[1]) and not word.startswith("-")]
        with suppress(SettingError):
            lines.append(f"There are {', '.join(keys(composed(others)[0], found[1])) or 'none'}.")
    return " ".join(" ".join(lines).split())


def keys(settings: Any, key: str) -> list[str]:
    """The keys of a configuration beside which `key` would stand, or those nearest to that place."""
    for part in key.split(".")[:-1]:
        if not isinstance(settings, dict) or not isinstance(settings.get(part), dict):
            break
        settings = settings[part]
    return [name for name in settings if name != "_target_"]


if __name__ == "__main__":
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors out, instead of printing several lines
    sys.argv[1:] = map(not_null, sys.argv[1:])
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped job ends as after Ctrl-C
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        main()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if isinstance(error, ValueError) and "Config group override" not in str(error):  # Hydra's, for method=1
            raise
        print(f"error: {one_line(error, sys.argv[1:])}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if "cluster=slurm" not in sys.argv:
            raise
        # No Slurm here, a partition that there is not, a job that was killed; what a job itself says is in its own file
        print(f"error: {' '.join(str(error).splitlines()[:2])}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # of Hydra's own files: those of the store and the data end in a SettingError
        if error.errno not in (*FULL, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR):
            raise
        print(f"error: {error.filename}: cannot be written to ({error.strerror})", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        sys.exit(130)
