"""The stopwatch: how long one operator takes with tensors of given sizes."""

from __future__ import annotations

import itertools
import math
import platform
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from secateur.devices import channels_last, wait
from secateur.heap import kept_where_allowed
from secateur.latency.calls import Call, TensorSpec, replaced
from secateur.latency.surroundings import Surroundings

_METHOD = 3  # counts up when times are taken in another way, so that old ones are not mixed with new ones
_SECONDS = 0.005  # of timed runs, beyond the least number of them
_RUNS = (4, 15)  # least and most
_LONG, _LONG_RUNS = 0.1, 3  # seconds that one run takes, and how many of such are enough
_QUARTILE = 25  # what disturbs a run only ever makes it longer
_NOTABLE = 1 << 18  # bytes; smaller weights are fetched in no time
_BEYOND_CACHES = 48 << 20  # bytes that are touched between two uses of the same weights


class Stopwatch(Protocol):
    """Tells how long a call takes. Tests and other devices bring their own."""

    @property
    def conditions(self) -> str:
        """All that times depend on besides the call: device, threads, versions, memory layout."""

    def __call__(self, call: Call) -> float:
        """Milliseconds of one call.

        Raises:
            RuntimeError: the operator refuses these sizes.
        """


@dataclass(frozen=True)
class OperatorStopwatch:
    """Runs an operator by itself, under the conditions in which a forward pass runs it.

    Before each run, other code works on other memory, and what the operator reads is written anew. Results
    are new memory each time. Weights have to be fetched from afar: between two uses of the same ones, others
    are used that are as large as the processor's caches.

    Attributes:
        device: where to run.
        layout: ``eager`` or ``channels-last``.
    """

    device: torch.device
    layout: str = "eager"

    @property
    def conditions(self) -> str:
        """Device, threads, version, layout, and the way of measuring."""
        count = torch.get_num_threads()
        threads = f"{count} thread{'s' * (count != 1)}, " if self.device.type == "cpu" else ""
        return (
            f"{device_name(self.device)}, {threads}torch {torch.__version__}, {self.layout}, method {_METHOD}"
        )

    def __call__(self, call: Call) -> float:
        """Milliseconds of one call: the lower quartile of its runs."""
        stored = sum(spec.bytes for spec in call.specs if spec.stored)
        copies = 1 if stored < _NOTABLE else max(1, math.ceil(_BEYOND_CACHES / stored))
        with torch.inference_mode(), kept_where_allowed():
            sets = itertools.cycle(self._arguments(call, copies))
            self._time(call, next(sets))
            times = [self._time(call, next(sets))]
            least = _LONG_RUNS if times[0] > _LONG else _RUNS[0]
            while len(times) < least or (sum(times) < _SECONDS and len(times) < _RUNS[1]):
                times.append(self._time(call, next(sets)))
        return float(np.percentile(times, _QUARTILE)) * 1e3

    def _arguments(self, call: Call, copies: int) -> list[_Arguments]:
        """As many sets of arguments as asked for; values are shared, weights are not."""
        values: list[Tensor] = []

        def made(spec: TensorSpec) -> Tensor:
            tensor = spec.make(self.device)
            if self.layout == "channels-last":
                tensor = channels_last(tensor)
            if not spec.stored and spec.dtype.is_floating_point:
                values.append(tensor)
            return tensor

        first = replaced(call.arguments, made)
        words = dict(replaced(call.keywords, made))
        stored = replaced(call.arguments, lambda spec: spec.stored)
        renewed = [_renewed(first, stored) for _ in range(copies - 1)]
        return [_Arguments(places, words, values) for places in (first, *renewed)]

    def _time(self, call: Call, given: _Arguments) -> float:
        self._surroundings.restore(given.values)
        wait(self.device)
        begin = time.perf_counter()
        result = call.function(*given.places, **given.words)
        wait(self.device)
        seconds = time.perf_counter() - begin
        del result
        return seconds

    @cached_property
    def _surroundings(self) -> Surroundings:
        return Surroundings(self.device)


@dataclass(frozen=True, eq=False)
class _Arguments:
    """One set of arguments of a call."""

    places: list[Any]
    words: dict[str, Any]
    values: list[Tensor]  # those that operators before have just written


def device_name(device: torch.device) -> str:
    """What a device calls itself.

    Args:
        device: any device.
    """
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    if device.type == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()} {_processor()}"
    return str(device)


def _processor() -> str:
    """The model of the processor, as far as the system tells."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
            return next(names, "")
    except OSError:
        return platform.processor()


def _renewed(item: Any, stored: Any) -> Any:
    """Arguments with fresh copies of the stored tensors."""
    if isinstance(item, Tensor):
        return item.clone() if stored is True else item
    if isinstance(item, list):
        marks = stored if isinstance(stored, list) else [False] * len(item)
        return [_renewed(part, mark) for part, mark in zip(item, marks, strict=True)]
    return item
