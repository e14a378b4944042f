"""python scripts/status.py sweep=NAME [group=choice] [key=value] ...: how far a sweep is.

Words are those of the `run.py` command that the sweep was started with, without `-m`. Says of each job that is not
done whether it is running, has failed (and why), was begun, or is missing, and ends with the command that continues the
sweep, which makes only what is missing. Downloads nothing: a job whose data are not here is missing, and says so. Exit
status 0 when all is done, 3 when something is not.
"""

import argparse
import json
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

from unlearn.configuration import composed, jobs
from unlearn.data.disk import how
from unlearn.data.download import NotHereError, nothing_downloaded
from unlearn.lab import Lab
from unlearn.lease import living
from unlearn.row import identity, readable
from unlearn.settings import SettingError
from unlearn.store import key_of

ORDER = ("done", "running", "failed", "begun", "refused", "missing")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("words", nargs="+", help="as for run.py; values may be swept over, as after -m")
    return result


def state(words: Sequence[str]) -> tuple[str, str]:
    """How far one job is, and what must be said of it."""
    try:
        settings, choices = composed(words)
        with nothing_downloaded():
            lab = Lab(settings)
    except SettingError as error:
        if isinstance(error.__cause__, NotHereError):
            return "missing", f"and its data are not here; {how(choices['dataset'])}"
        return "refused", str(error)
    recipe = identity(lab, choices)
    rows, key = lab.store.root / "rows", key_of("rows", recipe)
    if found := lab.store.find("rows", recipe):
        try:
            readable(found.json("row.json"), found.folder / "row.json")
        except SettingError as error:
            return "refused", str(error)
        return "done", ""
    if living(lab.store.root / "locks", f"rows-{key}"):
        return "running", ""
    if (rows / f"{key}.failed").exists():
        with suppress(ValueError, LookupError, TypeError):
            return "failed", str(json.loads((rows / f"{key}.failed").read_bytes())["reason"])
        return "failed", "and what it said is damaged"
    return ("begun", "and killed") if (rows / f"{key}.partial").exists() else ("missing", "")


def main() -> None:
    """Print a line for each job that is not done, the counts, and the command that goes on."""
    options = parser().parse_args()
    try:
        every = jobs(options.words)
    except SettingError as error:
        sys.exit(f"error: {error}")
    common = set.intersection(*(set(words) for words in every)) if len(every) > 1 else set()
    counts: Counter[str] = Counter()
    for words in every:
        found, said = state(words)
        counts[found] += 1
        if found != "done":
            own = shlex.join(word for word in words if word not in common)
            print(f"{found}: {own}" + (f" ({said})" if said else ""))
    print(", ".join(f"{counts[name]} {name}" for name in ORDER if counts[name]) + f", of {len(every)} jobs")
    if counts["done"] < len(every):
        several = "" if any(word.startswith("sweep=") for word in options.words) else "-m "
        print(f"python run.py {several}{shlex.join(options.words)}")
        sys.exit(3)


if __name__ == "__main__":
    main()
