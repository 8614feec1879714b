"""Several processes for one command: started here, or by ``torchrun``, one for each device."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

import typer

_CHILD = "SECATEUR_CHILD"
_GRACE, _MERCY = 20.0, 10.0
"""Seconds that processes have to end by themselves once one is gone, and then to obey SIGTERM."""


def is_first() -> bool:
    """Whether this process talks: the only one, or the first of several."""
    return os.environ.get("RANK", "0") == "0"


def started(devices: int | None) -> dict[str, int]:
    """How many processes take part, as device settings name them.

    Args:
        devices: what the user asks for on this machine; nothing if ``torchrun`` says it.

    Returns:
        ``devices``, and under ``torchrun`` the number of machines in ``nodes``.

    Raises:
        UsageError: ``torchrun`` has started another number.

    >>> started(None), started(2)
    ({'devices': 1}, {'devices': 2})
    """
    from secateur.errors import UsageError

    if "LOCAL_WORLD_SIZE" not in os.environ:
        return {"devices": devices or 1}
    here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    if devices not in (None, here):
        raise UsageError(
            f"--devices {devices}, but torchrun has started {here} processes on this machine; leave "
            "--devices out"
        )
    return {"devices": here, "nodes": everywhere // here}


def machine(
    accelerator: str, devices: int | None, precision: str, channels_last: str
) -> dict[str, str | int]:
    """Where to compute and in how many processes, as device settings name it.

    Args:
        accelerator: kind of device.
        devices: what the user asks for on this machine; nothing if ``torchrun`` says it.
        precision: of products.
        channels_last: memory layout of pictures.

    Raises:
        UsageError: ``torchrun`` has started another number of processes.
    """
    where: dict[str, str | int] = {"accelerator": accelerator, "precision": precision}
    return {**where, "channels_last": channels_last, **started(devices)}


def shared(devices: int | None) -> None:
    """Runs this command in as many processes as are asked for, and leaves with their exit code.

    Returns at once where there is only one, and in each of the processes.

    Args:
        devices: what the user asks for on this machine.

    Raises:
        typer.Exit: the processes are done.
    """
    if "LOCAL_WORLD_SIZE" in os.environ:
        if os.environ.get(_CHILD):
            threading.Thread(target=_stop_with_parent, daemon=True).start()
        return
    if devices is not None and devices > 1:
        raise typer.Exit(_run(devices, sys.argv[1:]))


def _stop_with_parent() -> None:
    """Ends the run in good order when the process that started this one is gone, and its pipe with it."""
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


def _run(count: int, words: list[str]) -> int:
    """Starts the processes, and waits for them; their exit code, the first one's before all."""
    import torch.distributed as dist

    # The processes meet here. It outlives each of them, so that whoever is left can still be asked.
    board = dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60)
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "secateur", *words],
            env=_environment(rank, count, board.port),
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is handed on below, once
        )
        for rank in range(count)
    ]
    with _handing_on(children):
        codes = _wait(children)
    return next((code for code in codes if code > 0), 1 if any(codes) else 0)


def _environment(rank: int, count: int, port: int) -> dict[str, str]:
    threads = str(max(1, (os.cpu_count() or 1) // count))
    return {
        "OMP_NUM_THREADS": threads,
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "secateur",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        _CHILD: "1",
    }


@contextmanager
def _handing_on(children: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Hands Ctrl-C and SIGTERM on to one process, which stops the others with it."""

    def hand_on(number: int, _frame: FrameType | None) -> None:
        alive = [child for child in children if child.poll() is None]
        if alive:
            alive[0].send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(children: list[subprocess.Popen[bytes]]) -> list[int]:
    """Exit codes, once all processes are gone; none outlives another that failed by more than a minute."""
    failed_at: float | None = None
    steps = [(_GRACE, signal.SIGTERM), (_GRACE + _MERCY, signal.SIGKILL)]
    while any(child.poll() is None for child in children):
        if failed_at is None and any(child.returncode for child in children):
            failed_at = time.monotonic()
        if failed_at is not None and steps and time.monotonic() - failed_at > steps[0][0]:
            _, number = steps.pop(0)
            for child in children:
                if child.poll() is None:
                    child.send_signal(number)
        time.sleep(0.05)
    return [child.returncode for child in children]
