"""Record the command line of a run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

_PROGRAMS = {"secateur", "secateur.exe", "__main__.py"}
_NOT_FOR_THE_RECORD = {"--overwrite", "--resume", "--json"}
"""Options about how a run is started, not about what it does."""


def command_line(words: Sequence[str] | None = None) -> str | None:
    """Return the command line of this process.

    Args:
        words: program and arguments; those of this process if not given.

    Returns:
        One line for a shell; ``None`` if another program calls the commands.

    >>> command_line(["/usr/bin/secateur", "prune", "a run", "--macs", "0.5", "--overwrite"])
    "secateur prune 'a run' --macs 0.5"
    """
    program, *rest = sys.argv if words is None else words
    if Path(program).name not in _PROGRAMS:
        return None
    return shlex.join(["secateur", *(word for word in rest if word not in _NOT_FOR_THE_RECORD)])
