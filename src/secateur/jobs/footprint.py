"""Measure the memory that a network needs while it runs, in a separate process."""

from __future__ import annotations

import gc
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

from secateur.jobs.candidates import open_candidate
from secateur.jobs.settings import NetworkChoice

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_FORGET_PEAK = "5"


def footprint(choice: NetworkChoice, runtime: str, batch: int, threads: int | None) -> int | None:
    """Measure the peak memory of running a network, with its weights, above the process's memory before.

    Args:
        choice: the network, or an exported file.
        runtime: one in which it can be run without being exported first.
        batch: examples in the forward pass.
        threads: of PyTorch or the runtime.

    Returns:
        Bytes; ``None`` where the system does not report it (only Linux does), or if the process died.
    """
    if not _STATUS.exists():
        return None
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_measured, choice, runtime, batch, threads).result()
        except BrokenProcessPool:
            return None


def _measured(choice: NetworkChoice, runtime: str, batch: int, threads: int | None) -> int:
    torch.set_num_threads(threads or torch.get_num_threads())
    open_candidate(choice)  # loads the libraries that it needs, whose memory is not counted
    before = _resident("VmRSS")
    candidate = open_candidate(choice)
    runner = candidate.ready(runtime, threads, Path())
    inputs = torch.zeros(batch, *candidate.size)
    del candidate  # the runner has a copy of the network, and only one is needed to run it
    gc.collect()
    runner(inputs)
    _CLEAR.write_text(_FORGET_PEAK)
    runner(inputs)
    return _resident("VmHWM") - before


def _resident(entry: str) -> int:
    """Read an entry of the process's status, in bytes."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{entry}:"))
    return int(line.split()[1]) * 1024
