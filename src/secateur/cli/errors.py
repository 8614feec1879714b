"""Turn exceptions into one line and an exit code."""

from __future__ import annotations

import functools
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import typer

from secateur.cli.processes import is_main, is_worker

P = ParamSpec("P")
R = TypeVar("R")

FAILED, WRONG_USAGE, SIGNALLED = 1, 2, 128
"""Exit codes; a run stopped by a signal exits with 128 plus the signal's number, as in shells."""


class CommandError(Exception):
    """Pass the user's error message from one of several processes to their launcher."""


def reported(command: Callable[P, R]) -> Callable[P, R]:
    """Convert errors that a user can correct to one line on standard error.

    A process that a launcher started writes its error into the launcher's error file instead, so that the
    launcher prints the first one once.

    Args:
        command: raises ``SecateurError`` for a user's mistake. Any other exception is an error
            in Secateur and keeps its traceback.

    Returns:
        The command; it exits with 1 if it failed, 2 on wrong usage, 130 on Ctrl-C.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        from secateur.errors import SecateurError

        try:
            return command(*args, **kwargs)
        except (KeyboardInterrupt, SecateurError, OSError) as error:
            line, code = _line_of(error)
            is_stopped = code > SIGNALLED
            if is_worker() and not is_stopped:
                _record(CommandError(line))
            elif is_main():
                typer.echo(" ".join(line.split()), err=True)
            raise typer.Exit(code) from None
        except typer.Exit:
            raise
        except Exception as error:
            if not is_worker():
                raise
            _record(error)
            raise typer.Exit(FAILED) from None

    return run


def _record(error: Exception) -> None:
    """Write an error, with the traceback of the current exception, into the launcher's error file."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)


def recorded_line(file: Path) -> str:
    """Read the line that a process wrote into an error file; for an error in Secateur, its traceback."""
    found = json.loads(file.read_text())["message"]
    name, _, line = found["message"].partition(": ")
    return " ".join(line.split()) if name == CommandError.__name__ else found["extraInfo"]["py_callstack"]


def _line_of(error: BaseException) -> tuple[str, int]:
    """Return the line for the user, and the exit code."""
    from secateur.errors import StoppedError, UsageError

    match error:
        case KeyboardInterrupt():
            return "stopped by Ctrl-C", SIGNALLED + signal.SIGINT
        case StoppedError():
            return str(error), SIGNALLED + error.number
        case UsageError():
            return f"wrong usage: {error}", WRONG_USAGE
        case OSError():
            place = f"{error.filename}: " if error.filename else ""
            return f"error: {place}{error.strerror or error}", FAILED
    return f"error: {error}", FAILED
