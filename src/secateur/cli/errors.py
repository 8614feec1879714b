"""From exceptions to one line and an exit code."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer

from secateur.cli.processes import is_first

P = ParamSpec("P")
R = TypeVar("R")

FAILED, WRONG_USAGE, SIGNALLED = 1, 2, 128
"""Exit codes; a run stopped by a signal leaves with 128 and the signal's number, as shells do."""


def reported(command: Callable[P, R]) -> Callable[P, R]:
    """Turns the errors of a command that a user can act on into one line on standard error.

    Args:
        command: raises ``SecateurError`` on a user's mistake. Any other exception is a mistake
            in Secateur and keeps its traceback.

    Returns:
        The command, leaving with 1 if it failed, 2 on wrong usage, 130 on Ctrl-C.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        from secateur.errors import SecateurError, UsageError
        from secateur.training.crew import AsideError

        try:
            return command(*args, **kwargs)
        except AsideError as error:
            raise typer.Exit(_told(error.error)[1]) from None
        except (KeyboardInterrupt, SecateurError, OSError) as error:
            line, code = _told(error)
            if is_first() or not isinstance(error, UsageError) or _in_crew():
                typer.echo(" ".join(line.split()), err=True)
            raise typer.Exit(code) from None

    return run


def _in_crew() -> bool:
    """Whether the processes have found each other; before that, all make the same of wrong usage."""
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def _told(error: BaseException) -> tuple[str, int]:
    """What a user is told of an error, and the exit code."""
    from secateur.errors import UsageError
    from secateur.training.interrupt import StoppedError

    match error:
        case KeyboardInterrupt():
            return "stopped by Ctrl-C", SIGNALLED + signal.SIGINT
        case StoppedError():
            return str(error), SIGNALLED + error.number
        case UsageError():
            return f"wrong usage: {error}", WRONG_USAGE
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            return f"error: {where}{error.strerror or error}", FAILED
    return f"error: {error}", FAILED
