"""Turn Ctrl-C and SIGTERM into a request: finish the step, save, then stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from secateur.errors import StoppedError
from secateur.ranks import ALONE, Ranks

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Hold a request to stop; set by :func:`interruptible`.

    Args:
        ranks: the processes of the run. If one of them is asked, all of them stop at the same place, so all
            have to check at the same places.

    >>> interruption = Interruption()
    >>> interruption.check()
    >>> interruption.request(signal.SIGTERM)
    >>> interruption.check()
    Traceback (most recent call last):
    secateur.errors.StoppedError: stopped by SIGTERM
    """

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self.number: int | None = None
        self._ranks = ranks

    def request(self, number: int) -> None:
        """Ask to stop.

        Args:
            number: of the signal.
        """
        self.number = number

    def check(self) -> None:
        """Stop if a process was asked to.

        Raises:
            StoppedError: one was.
        """
        number = self._ranks.all_reduce_max(self.number or 0)
        if number:
            raise StoppedError(number)


@contextmanager
def interruptible(ranks: Ranks = ALONE) -> Iterator[Interruption]:
    """Turn Ctrl-C and SIGTERM into a request for the length of a block.

    A second Ctrl-C is not caught: it raises ``KeyboardInterrupt`` at once. Outside the main
    thread, where Python allows no signal handlers, nothing is caught at all.

    Args:
        ranks: the processes of the run, which stop together.

    Yields:
        The request, to be checked between steps.
    """
    interruption = Interruption(ranks)
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        if interruption.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        interruption.request(number)

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
