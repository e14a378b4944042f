"""What `run.py` says of a command that comes to nothing: one line, with the word that is wrong and what is allowed."""

import re
import sys
import traceback
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from typing import Any, NoReturn

from hydra.errors import CompactHydraException, HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from unlearn.checks import CHOSEN, check_word, refusal
from unlearn.configuration import as_written, check_swept
from unlearn.settings import SettingError

SINGLE = {*CHOSEN, "experiment"} - {"auditor"}


def end(said: object) -> NoReturn:
    """Say in one line on standard error why there is no row, and end with status 2."""
    print(f"error: {said}", file=sys.stderr)
    sys.exit(2)


def plain(words: Sequence[str]) -> list[str]:
    """The words of a command line as Hydra is to be given them; ends with a line at one that cannot mean anything."""
    try:
        given = [not_null(word) for word in words]
        check_swept(given)
    except SettingError as error:
        end(error)
    return given


def not_null(word: str) -> str:
    """A word of the command line, which must not be `group=null`: Hydra's traceback at that comes before `main`.

    Nor may it lead out of the folders of choices. Of a group that is null by default it becomes Hydra's own way to say
    so, `~group`, and of `experiment`, whose name others are composed by, `none`. A list of choices is for auditors
    alone. Raises a `SettingError`.
    """
    group, _, value = word.partition("=")
    listed = group in SINGLE and value.startswith("[")
    if listed or (group in CHOSEN and "null" in value.strip("[]").lower().split(",")):
        raise refusal(group, value)
    check_word(word)
    if value.lower() != "null":
        return word
    return {"experiment": "experiment=none", "sweep": "~sweep", "cluster": "~cluster"}.get(group, word)


def complaint(error: Exception, words: Sequence[str]) -> str | None:
    """The line that an error outside of a job deserves; None of one inside, whose trace says more.

    What Hydra itself raises is about the command, its own files or the cluster. A job in another process has said there
    whatever more there is to say.
    """
    if isinstance(error, BrokenExecutor):
        return "a process was killed; the same command continues"
    if isinstance(error, CompactHydraException) and type(error) is CompactHydraException:  # a job's own line
        return str(error)
    if any(frame.f_code.co_name == "main" for frame, _ in traceback.walk_tb(error.__traceback__)):
        return None
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: cannot be read; must be key=value, in quotes if it holds more than letters and digits"
        )
    if isinstance(error, HydraException | OmegaConfBaseException):
        return of_hydra(error, words)
    if isinstance(error, OSError):
        place, why = str(error.filename), f"cannot be written to ({error.strerror})"
        word = spoken_of(place, words)
        return f"{place}: {why}" if word is None else f"{word}: {why}"
    said = " ".join(str(error).splitlines()[:2]) or type(error).__name__
    return with_word(said, words)


def of_hydra(error: Exception, words: Sequence[str]) -> str:
    """What Hydra says of a word that it cannot make sense of, with the keys there are and without its advice."""
    said, _, _ = str(error).partition("Config search path")
    if found := re.match(r"Could not override '(.+?)'", said):
        key = found[1]
        word = next((word for word in words if word.lstrip("+~").startswith(key)), key)
        others = [other for other in words if other != word and not other.startswith("-")]
        there: list[str] = []
        with suppress(SettingError):
            there = keys(as_written(others), key)
        if key in CHOSEN:
            return str(refusal(key, word.partition("=")[2]))
        return f"{word}: is not a setting; there are {', '.join(there) or 'none'}"
    lines = [line for line in said.splitlines() if not line.startswith(("See https://hydra.cc", "To append", " "))]
    if isinstance(error.__cause__, OmegaConfBaseException):
        lines += str(error.__cause__).splitlines()[:1]
    if key := getattr(error, "full_key", None):
        lines = [f"{key}: {lines[0]}"]
    return with_word(" ".join(" ".join(lines).split()), words)


def with_word(said: str, words: Sequence[str]) -> str:
    """What was said, after the word that it speaks of if it does not begin with that."""
    word = spoken_of(said, words)
    return said if word is None or said.startswith(word) else f"{word}: {said}"


def spoken_of(said: str, words: Sequence[str]) -> str | None:
    """The word that is itself in what was said, or whose value or the end of whose key is; the longest of several."""
    found = []
    for word in words:
        key, _, value = word.lstrip("~").partition("=")
        named = re.search(rf"\b{re.escape(key.rpartition('.')[2])}\b", said)
        if not word.startswith("-") and (named or (len(value) > 3 and (value in said or value.startswith(said)))):
            found.append(word)
    return max(found, key=lambda word: (word in said, word.startswith("~"), len(word)), default=None)


def keys(settings: Any, key: str) -> list[str]:
    """The keys of a configuration beside which `key` would stand, or those nearest to that place."""
    for part in key.split(".")[:-1]:
        if not isinstance(settings, dict) or not isinstance(settings.get(part), dict):
            break
        settings = settings[part]
    return [name for name in settings if name not in ("_target_", "hydra")]
