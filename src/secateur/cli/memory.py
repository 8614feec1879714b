"""Keep freed memory in the process of the command line.

glibc returns large freed blocks to the system. When the next forward pass allocates them again, the system
fills every page with zeros. Keeping them saves about a sixth of the CPU time of training and up to half of
that of an evaluation.
"""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of mallopt, from malloc.h
_KEPT = 256 << 20  # bytes at the end of the heap that are kept; more is returned to the system
_CHOSEN = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Let glibc reuse large freed blocks instead of returning each to the system.

    This changes the whole process, so only the command line calls it. It does nothing if the C library
    is not glibc, or if an environment variable of glibc configures its memory already.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _CHOSEN):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, _KEPT)
