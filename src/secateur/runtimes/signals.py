"""The stack on which Python answers signals, kept from a library that takes it away.

OpenVINO, when it looks for matrix units in the processor, gives the thread a signal stack of its own and
frees the memory later. Python's handlers run on such a stack where there is one: the next Ctrl-C would end
the program with a segmentation fault instead of a request to stop.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """``stack_t`` of Linux."""

    _fields_ = (
        ("address", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("size", ctypes.c_size_t),
    )


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Puts the thread's signal stack back after a block; elsewhere than on Linux, nothing is done.

    >>> with signal_stack_kept():
    ...     pass
    """
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), _Stack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)
