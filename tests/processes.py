"""Run a test in several processes on one machine, with a time limit."""

from __future__ import annotations

import multiprocessing as mp
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from secateur.training.context import RunContext
from secateur.training.settings import DeviceSettings

Work = Callable[..., Any]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def in_processes(work: Work, count: int, folder: Path, *args: Any, limit: float = 120.0) -> list[Any]:
    """Return what ``work(context, *args)`` returns in each of some processes, which share one run.

    A count of 1 does the work here, without any process group.
    """
    if count == 1:
        return [work(RunContext(_settings(1)), *args)]
    context = mp.get_context("spawn")
    port = free_port()
    processes = [
        context.Process(target=_member, args=(work, rank, count, port, folder, args)) for rank in range(count)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + limit
    try:
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        assert [process.exitcode for process in processes] == [0] * count
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [torch.load(folder / f"found.{rank}", weights_only=True) for rank in range(count)]


def _member(work: Work, rank: int, count: int, port: int, folder: Path, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }
    context = RunContext(_settings(count))
    torch.save(work(context, *args), folder / f"found.{rank}")
    dist.destroy_process_group()


def _settings(count: int) -> DeviceSettings:
    return DeviceSettings(accelerator="cpu", devices=count, precision="float32")
