"""The parts of Markdown files that a script writes: between `<!-- NAME ARGUMENTS -->` and `<!-- end -->`."""

import re
import shlex
from collections.abc import Callable

from unlearn.settings import SettingError


def updated(text: str, name: str, make: Callable[[list[str]], str]) -> str:
    """A Markdown text with every block of that name made anew from its arguments.

    Raises `SettingError` for a block that does not end.
    """
    # A block that lacks its end must not reach to the end of the next
    block = re.compile(rf"(<!-- {name} ([^\n]*?) -->\n)(?:(?!<!-- {name} ).)*?(<!-- end -->)", re.DOTALL)
    if text.count(f"<!-- {name} ") != len(block.findall(text)):
        allowed = f"must be a line <!-- {name} ARGUMENTS -->, and end at <!-- end -->"
        raise SettingError("--update", f"a {name} block", allowed)
    return block.sub(lambda found: f"{found[1]}{make(shlex.split(found[2]))}\n{found[3]}", text)
