"""Suppress what compiled libraries print."""

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
    """Discard what compiled code writes to standard output, within a block.

    The solver HiGHS sometimes prints a line despite its options, which would corrupt JSON output. Only
    the command line uses this; the library leaves the output of the process alone. Python's output before
    and after the block is not changed.
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
    """Flush the buffers of the C library, which would otherwise be written later."""
    with suppress(OSError, TypeError, AttributeError):  # only POSIX systems have this library
        ctypes.CDLL(None).fflush(None)
