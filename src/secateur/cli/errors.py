"""From exceptions to one line and an exit code."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer

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
        from secateur.training.interrupt import StoppedError

        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            raise _leave("stopped by Ctrl-C", SIGNALLED + signal.SIGINT) from None
        except StoppedError as error:
            raise _leave(str(error), SIGNALLED + error.number) from None
        except UsageError as error:
            raise _leave(f"wrong usage: {error}", WRONG_USAGE) from None
        except SecateurError as error:
            raise _leave(f"error: {error}", FAILED) from None
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise _leave(f"error: {where}{error.strerror or error}", FAILED) from None

    return run


def _leave(line: str, code: int) -> typer.Exit:
    typer.echo(" ".join(line.split()), err=True)
    return typer.Exit(code)
