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

from secateur.errors import SecateurError
from secateur.training.devices import Machine, make_machine
from secateur.training.interrupt import StoppedError
from secateur.training.settings import DeviceSettings

# What the libraries below PyTorch say of a connection, all of them as plain RuntimeErrors.
_LOST = re.compile(
    r"third_party/gloo|gloo/transport|gloo::|nccl(System|Remote|Internal|Unhandled)"
    r"|NCCL (error|communicator|operation)|ProcessGroup(Gloo|NCCL)|TCPStore|broken pipe"
    r"|connection (was )?(closed|reset|refused) by peer",
    re.IGNORECASE,
)
_PATIENCE = timedelta(seconds=10)
_SHOWN = 200  # characters of what a library said of a connection


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

    A board holds a connection for as long as it lives.

    Args:
        index: of this process.
        run: number of the run among those that this process took part in: what was told in an earlier one
            does not count.
    """

    def __init__(self, index: int, run: int = 0) -> None:
        self._index = index
        self._key = f"secateur/failure/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{run}"
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
    global _runs  # noqa: PLW0603  # of the process, as the connection to the others is
    machine = make_machine(settings)
    if not machine.ranks.together:
        yield machine
        return
    _runs += 1
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
    except StoppedError as error:  # known to all of them
        if ranks.first:
            raise
        raise AsideError(error, str(error)) from None
    except KeyboardInterrupt:  # a second Ctrl-C, to this process alone
        _claim(ranks.index, "stopped by Ctrl-C")
        raise
    except Exception as error:
        seen = _seen(error)
        told = _claim(ranks.index, str(seen))
        if told is None:
            raise seen from error
        raise AsideError(seen, told) from error


_runs = 0
"""Runs of several processes that this one has taken part in."""


def _claim(index: int, text: str) -> str | None:
    """Asks to be the one who tells, over a connection that ends with the question."""
    try:
        return Board(index, _runs).claim(text)
    except (RuntimeError, OSError, KeyError):  # nobody can be asked: better told twice than not at all
        return None


def _seen(error: Exception) -> Exception:
    """An error, or what it means where it is about the connection to another process."""
    is_lost = isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None
    )
    if not is_lost:
        return error
    said = " ".join(str(error).split())
    said = f"{said[:_SHOWN]}..." if len(said) > _SHOWN else said
    return LostError(f"another process of this run is gone: killed, or its machine lost ({said})")
