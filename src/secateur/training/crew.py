"""A crew: the processes of one run, from where they find each other to where they part, also in bad order.

Of everything that goes wrong one process tells, in one line: the one that it happened to, or, where that is
gone without a word (killed, or its machine lost power), the first to notice. The others end quietly.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from secateur.errors import SecateurError, UsageError
from secateur.training.devices import Machine, make_machine
from secateur.training.interrupt import StoppedError
from secateur.training.settings import DeviceSettings

_LOST = re.compile(
    r"gloo|nccl|^Dist|by peer|socket|TCPStore|broken pipe|connection (was )?(closed|reset|refused)",
    re.IGNORECASE,
)
_PATIENCE = timedelta(seconds=10)


class LostError(SecateurError):
    """Another process of the run is gone."""


class AsideError(SecateurError):
    """Something went wrong that another process tells.

    Attributes:
        error: what went wrong here.
    """

    def __init__(self, error: BaseException, told: str) -> None:
        super().__init__(told)
        self.error = error


class Board:
    """Where the processes agree on who tells; it outlives each of them if its host is none of them.

    Args:
        index: of this process.
    """

    def __init__(self, index: int) -> None:
        self._index = index
        self._key = f"secateur/failure/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = dist.TCPStore(  # type: ignore[attr-defined]
            address, port, is_master=False, timeout=_PATIENCE
        )

    def claim(self, text: str) -> str | None:
        """Asks to be the one who tells.

        Args:
            text: what there is to tell.

        Returns:
            What another process tells instead; nothing if this one is to.
        """
        mine = f"{self._index} {text}"
        try:
            told = self._store.compare_set(self._key, "", mine).decode()
        except RuntimeError:  # the host of the board is gone: better told twice than not at all
            return None
        number, _, said = told.partition(" ")
        return None if int(number) == self._index else said


@contextmanager
def joined(settings: DeviceSettings | None = None) -> Iterator[Machine]:
    """The machine for a job, and the other processes of it, for a block.

    Args:
        settings: where and how to compute, and how many processes.

    Yields:
        The machine.

    Raises:
        LostError: another process is gone.
        AsideError: something went wrong that another process tells.
    """
    machine = make_machine(settings)
    if not machine.ranks.together:
        yield machine
        return
    with one_voice(machine):
        yield machine
        machine.ranks.wait()
    dist.destroy_process_group()


@contextmanager
def one_voice(machine: Machine) -> Iterator[None]:
    """Sees to it that of what goes wrong in a block one process tells.

    Args:
        machine: with the processes.

    Raises:
        LostError: another process is gone, and this one is the first to notice.
        AsideError: another process tells.
    """
    ranks = machine.ranks
    if not ranks.together:
        yield
        return
    try:
        yield
    except AsideError:
        raise
    except (StoppedError, UsageError) as error:  # known to all of them
        if ranks.first:
            raise
        raise AsideError(error, str(error)) from None
    except KeyboardInterrupt:  # a second Ctrl-C, to this process alone
        _board(ranks.index).claim("stopped by Ctrl-C")
        raise
    except Exception as error:
        seen = _seen(error)
        told = _board(ranks.index).claim(str(seen))
        if told is None:
            raise seen from error
        raise AsideError(seen, told) from error


def _seen(error: Exception) -> Exception:
    """An error, or what it means where it is about the connection to another process."""
    is_lost = isinstance(error, RuntimeError) and _LOST.search(f"{type(error).__name__} {error}")
    return LostError("another process of this run is gone: killed, or its machine lost") if is_lost else error


_BOARDS: dict[int, Board] = {}


def _board(index: int) -> Board:
    """The board, with a connection that is made once."""
    if index not in _BOARDS:
        _BOARDS[index] = Board(index)
    return _BOARDS[index]
