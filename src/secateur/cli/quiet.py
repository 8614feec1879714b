"""Keep compiled libraries from printing."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_STANDARD_OUTPUT = 1


@contextmanager
def silent_output() -> Iterator[None]:
    """Sends what compiled code writes to standard output nowhere, for a block.

    The solver HiGHS prints a line of its own now and then whatever it is told, which would spoil the output
    of a program that writes JSON. This is for the command line, whose process is its own: the library leaves
    the output of the process alone. Python's own output is not touched before and after the block.
    """
    if sys.stdout is not None:
        sys.stdout.flush()
    try:
        kept = os.dup(_STANDARD_OUTPUT)
    except OSError:  # closed, so nothing can be printed
        yield
        return
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), _STANDARD_OUTPUT)
            yield
    finally:
        _flush()
        os.dup2(kept, _STANDARD_OUTPUT)
        os.close(kept)


def _flush() -> None:
    """Empties the buffers of the C library, which would else be written out later."""
    with suppress(OSError, TypeError, AttributeError):  # no such library elsewhere than on POSIX systems
        ctypes.CDLL(None).fflush(None)
