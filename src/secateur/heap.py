"""The heap: memory that was freed is kept for the next use, instead of handed back to the system.

The C library of most Linux systems fetches each large block from the system and hands it back when it is
freed, and the system delivers every page of it anew, filled with zeros. A forward pass of a few megabytes a
layer, or a training step, may spend as much time on that as on its numbers, and how much hangs on what the
process happened to free before.

How memory is dealt with is a matter of the whole process. So the library keeps it only where it was asked to:
in a block of :func:`kept_heap`, or in a program of its own, such as the command line, that has called
:func:`keep_in_this_process`.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

# Parameters of mallopt, from malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_NEVER = -1
_KEEPING = {_MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER}
# What the library arrives at by itself in a process that has freed large blocks.
_ORDINARY = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}
_CHOSEN = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


class _Keepers:
    """How many blocks of code want memory kept; they may be nested, and lie in several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def enter(self) -> None:
        """One more."""
        with self._lock:
            if self._count == 0:
                _apply(_KEEPING)
            self._count += 1

    def leave(self) -> None:
        """One less; after the last, what is free goes back to the system."""
        with self._lock:
            self._count -= 1
            if self._count == 0:
                _apply(_ORDINARY)
                library = _library()
                if library is not None:
                    library.malloc_trim(0)


_KEEPERS = _Keepers()


_allowed = False


def keep_in_this_process() -> None:
    """Lets what runs the same pass many times (training, scores, the clock) keep memory in this process.

    For programs whose process is their own. It has no effect on anything but :func:`kept_where_allowed`.
    """
    global _allowed  # noqa: PLW0603  # of the process, as the C library's settings are
    _allowed = True


@contextmanager
def kept_where_allowed() -> Iterator[None]:
    """Keeps freed memory as :func:`kept_heap` does, if this process has allowed it; else does nothing.

    Returns:
        A context manager, which may decorate a function as well.
    """
    if not _allowed:
        yield
        return
    with kept_heap():
        yield


@contextmanager
def kept_heap() -> Iterator[None]:
    """Keeps freed memory for the next use within a block of code.

    Afterwards all that is free goes back to the system, and the C library goes on with the thresholds that
    it arrives at by itself in a process that has freed a large block. What the program set itself with
    ``mallopt`` is not put back. Where it is not the GNU C library, or where environment variables say how it
    is to deal with memory, nothing is done. Blocks may be nested and lie in several threads.

    Returns:
        A context manager, which may decorate a function as well.

    Raises:
        AttributeError: the same context manager is entered twice; each block needs one of its own.

    Example:
        >>> import torch
        >>> layer = torch.nn.Conv2d(3, 64, 3)
        >>> with kept_heap(), torch.inference_mode():
        ...     shapes = [layer(torch.ones(16, 3, 66, 66)).shape for _ in range(2)]
        >>> shapes[1]
        torch.Size([16, 64, 64, 64])
    """
    _KEEPERS.enter()
    try:
        yield
    finally:
        _KEEPERS.leave()


def _apply(parameters: dict[int, int]) -> None:
    library = _library()
    if library is not None:
        for name, value in parameters.items():
            library.mallopt(name, value)


@cache
def _library() -> ctypes.CDLL | None:
    """The C library, if it is one that can be told, and nobody has told it yet."""
    if sys.platform != "linux" or any(name in os.environ for name in _CHOSEN):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt") else None
