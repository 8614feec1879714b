"""Run networks without the reports of torch: of exports that fail, and of compiled code."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

import torch

from secateur._compat import FakeTensorMode

_LOGGERS = ("torch._subclasses", "torch.fx", "torch.export", "torch._export", "torch._dynamo")


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """Keep torch from logging call stacks, printing programs and warning of numbers for a block.

    Loggers that were set to show more than warnings (``TORCH_LOGS``) still do. Everything is restored
    afterwards. What the network itself prints is not touched.
    """
    names = [name for name in logging.root.manager.loggerDict if name.startswith(_LOGGERS)]
    loggers = [logging.getLogger(name) for name in names]
    stopped = [logger for logger in loggers if not (logger.disabled or logger.isEnabledFor(logging.INFO))]
    before, sieve = sys.stderr, None
    for logger in stopped:
        logger.disabled = True
    if before is not None:
        sieve = sys.stderr = _Sieve(before)
    try:
        with warnings.catch_warnings():
            # Tensors require gradients in an export, also where the user runs the network without.
            warnings.filterwarnings("ignore", message="Converting a tensor with requires_grad")
            yield
    finally:
        if sieve is not None and sys.stderr is sieve:
            sys.stderr = before
        for logger in stopped:
            logger.disabled = False


@contextlib.contextmanager
def quiet_fakes(mode: FakeTensorMode) -> Iterator[None]:
    """Run on fake tensors within a block, without the call stacks that torch logs for a failing operator.

    Args:
        mode: what the tensors of the block belong to.
    """
    with quiet_export(), mode:
        yield


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled functions and modules as ordinary Python within a block, without warnings.

    Compiled code reads the memory of tensors that only have a shape, and does not see modes. Warnings
    of the network are suppressed here; users see them when they run it.
    """
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings(action="ignore"):
        yield


class _Sieve:
    """A stream that drops the programs which ``torch.export`` prints, and passes on everything else."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._thread = threading.get_ident()
        self._dropped = False

    def write(self, text: str) -> int:
        """Write a piece of text, unless it is a program, or the line end behind one."""
        if threading.get_ident() == self._thread:
            is_program = "def forward(self" in text and "torch.ops." in text
            if is_program or (self._dropped and text == "\n"):
                self._dropped = is_program
                return len(text)
            self._dropped = False
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
