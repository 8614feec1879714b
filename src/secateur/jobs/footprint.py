"""How much memory a network needs while it runs, seen from outside by a process of its own."""

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
    """Peak memory of running a network, with its weights, over what the process held before.

    Args:
        choice: the network, or an exported file.
        runtime: one in which it can be run without being exported first.
        batch: examples in the forward pass.
        threads: of PyTorch or the runtime.

    Returns:
        Bytes; ``None`` where the system does not tell (elsewhere than on Linux), or the process died.
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
    open_candidate(choice)  # once for the libraries that it needs, which are not the network's own
    before = _resident("VmRSS")
    candidate = open_candidate(choice)
    runner = candidate.ready(runtime, threads, Path())
    inputs = torch.zeros(batch, *candidate.size)
    del candidate  # the runner has a copy of the network, and one is what running it needs
    gc.collect()
    runner(inputs)
    _CLEAR.write_text(_FORGET_PEAK)
    runner(inputs)
    return _resident("VmHWM") - before


def _resident(entry: str) -> int:
    """Bytes of an entry of the process's status."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{entry}:"))
    return int(line.split()[1]) * 1024
