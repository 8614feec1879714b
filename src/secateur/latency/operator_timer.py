"""Time single operators under the conditions of a forward pass, and keep the times in a file."""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from secateur.devices import channels_last, wait
from secateur.errors import UsageError
from secateur.latency.operators import OperatorCall, TensorSpec, replace_specs

CACHE = "SECATEUR_CACHE"
"""Name of the environment variable that holds the folder where timings are kept."""

_METHOD = 4  # must increase when operators are timed in another way, so that old and new times are not mixed
_SECONDS = 0.005  # of timed runs, beyond the least number of them
_RUNS = (4, 15)  # least and most
_LONG, _LONG_RUNS = 0.1, 3  # a run of so many seconds is long; least number of long runs
_QUARTILE = 25  # disturbances only make a run longer
_NOTABLE = 1 << 18  # bytes; reading smaller weights from memory takes no notable time
_BEYOND_CACHES = 48 << 20  # bytes of other weights that are read between two uses of the same weights
_CORE_CACHES = 4 << 20  # bytes; more than the caches of one core hold


class OperatorTimer(Protocol):
    """Measure the time of a call. Tests and other devices implement this protocol too."""

    @property
    def conditions(self) -> str:
        """Name everything that affects times besides the call: device, threads, versions, memory layout."""

    def __call__(self, call: OperatorCall) -> float:
        """Measure the milliseconds of one call.

        Raises:
            RuntimeError: the operator refuses these sizes.
        """


@dataclass(frozen=True)
class DeviceTimer:
    """Run an operator alone, with the caches in the state in which a forward pass leaves them.

    Before each run, other code works on other memory, and the values that the operator reads are written
    again. Its results are new memory each time. Its weights are not in the caches: between two uses of the
    same weights, others are used that are as large as the processor's caches.

    Attributes:
        device: where to run.
        layout: ``eager`` or ``channels-last``.
    """

    device: torch.device
    layout: str = "eager"

    @property
    def conditions(self) -> str:
        """Name device, threads, version, layout, and the method of measuring."""
        count = torch.get_num_threads()
        threads = f"{count} thread{'s' * (count != 1)}, " if self.device.type == "cpu" else ""
        return (
            f"{device_name(self.device)}, {threads}torch {torch.__version__}, {self.layout}, method {_METHOD}"
        )

    def __call__(self, call: OperatorCall) -> float:
        """Measure the milliseconds of one call: the lower quartile of its runs."""
        stored = sum(spec.bytes for spec in call.specs if spec.stored)
        copies = 1 if stored < _NOTABLE else max(1, math.ceil(_BEYOND_CACHES / stored))
        with torch.inference_mode():
            sets = itertools.cycle(self._arguments(call, copies))
            self._time(call, next(sets))
            times = [self._time(call, next(sets))]
            least = _LONG_RUNS if times[0] > _LONG else _RUNS[0]
            while len(times) < least or (sum(times) < _SECONDS and len(times) < _RUNS[1]):
                times.append(self._time(call, next(sets)))
        return float(np.percentile(times, _QUARTILE)) * 1e3

    def _arguments(self, call: OperatorCall, copies: int) -> list[_Arguments]:
        """Create sets of arguments, which share values but not weights."""
        values: list[Tensor] = []

        def create(spec: TensorSpec) -> Tensor:
            tensor = call.make(spec, self.device)
            if self.layout == "channels-last":
                tensor = channels_last(tensor)
            if not spec.stored and spec.dtype.is_floating_point:
                values.append(tensor)
            return tensor

        first = replace_specs(call.arguments, create)
        keywords = dict(replace_specs(call.keywords, create))
        stored = replace_specs(call.arguments, lambda spec: spec.stored)
        others = [_clone_stored(first, stored) for _ in range(copies - 1)]
        return [_Arguments(positional, keywords, values) for positional in (first, *others)]

    def _time(self, call: OperatorCall, arguments: _Arguments) -> float:
        self._flush(arguments.values)
        wait(self.device)
        begin = time.perf_counter()
        result = call.function(*arguments.positional, **arguments.keywords)
        wait(self.device)
        seconds = time.perf_counter() - begin
        del result
        return seconds

    @cached_property
    def _flush(self) -> Callable[[Iterable[Tensor]], None]:
        return cache_flusher(self.device)


@dataclass(frozen=True, eq=False)
class _Arguments:
    """One set of arguments of a call."""

    positional: list[Any]
    keywords: dict[str, Any]
    values: list[Tensor]  # those that operators before have just written


def _clone_stored(item: Any, stored: Any) -> Any:
    """Replace the stored tensors among arguments by copies."""
    if isinstance(item, Tensor):
        return item.clone() if stored is True else item
    if isinstance(item, list):
        marks = stored if isinstance(stored, list) else [False] * len(item)
        return [_clone_stored(part, mark) for part, mark in zip(item, marks, strict=True)]
    return item


def cache_flusher(device: torch.device) -> Callable[[Iterable[Tensor]], None]:
    """Return a function that leaves the caches of a device as the rest of a network leaves them.

    An operator that is repeated alone finds its code, its weights and the memory of its result in the nearest
    caches. Within a network, all other operators have run in between. So the function runs other code on
    other memory, and then writes the values that the operator reads; they keep their numbers.

    Args:
        device: where operators are timed.

    >>> values = torch.ones(2, 3)
    >>> cache_flusher(values.device)([values])
    >>> values.sum()
    tensor(6.)
    """
    memory = torch.ones(_CORE_CACHES // 4, device=device)
    image = torch.ones(1, 16, 14, 14, device=device)
    weights = torch.ones(16, 16, 3, 3, device=device)
    channels = torch.ones(16, device=device)

    def flush(values: Iterable[Tensor]) -> None:
        memory.mul_(1)
        result = torch.conv2d(image, weights, padding=1)
        result = torch.nn.functional.batch_norm(result, channels, channels)
        torch.relu_(result)
        for value in values:
            value.mul_(1)

    return flush


def device_name(device: torch.device) -> str:
    """Return the name of the model of a device.

    Args:
        device: any device.
    """
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    if device.type == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()} {_processor()}"
    return str(device)


def _processor() -> str:
    """Return the model of the processor, as far as the system provides it."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
            return next(names, "")
    except OSError:
        return platform.processor()


class Timings:
    """Milliseconds of operators and networks, by conditions, kept in a file.

    Each time is one line of JSON, appended as soon as it is measured: an interrupted measurement continues
    where it stopped, and networks share the times of the operators that they have in common.

    Args:
        path: a file to read and to append to; without, timings are kept as long as this object.

    Raises:
        UsageError: the file cannot be read or written.

    Example:
        >>> timings = Timings()
        >>> timings.put("cpu, 1 thread", "aten.relu.default(float32[8])", 0.25)
        >>> timings.get("cpu, 1 thread", "aten.relu.default(float32[8])")
        0.25
        >>> timings.get("cpu, 2 threads", "aten.relu.default(float32[8])") is None
        True
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._known: dict[tuple[str, str], float] = {}
        if path is not None:
            self._read(path)

    @classmethod
    def at_home(cls) -> Timings:
        """Open this user's file, in ``$SECATEUR_CACHE`` or in ``secateur`` in the user's cache folder."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "secateur"
        return cls(Path(os.environ.get(CACHE) or cache) / "timings.jsonl")

    def __len__(self) -> int:
        return len(self._known)

    def get(self, conditions: str, what: str) -> float | None:
        """Return a time in milliseconds, or None if it was not measured.

        Args:
            conditions: device, threads, versions.
            what: the operator with the sizes of its arguments.
        """
        return self._known.get((conditions, what))

    def put(self, conditions: str, what: str, milliseconds: float) -> None:
        """Keep a time.

        Args:
            conditions: device, threads, versions.
            what: the operator with the sizes of its arguments.
            milliseconds: its time.

        Raises:
            UsageError: the file cannot be written.
        """
        self._known[conditions, what] = milliseconds
        if self.path is None:
            return
        line = json.dumps({"conditions": conditions, "what": what, "ms": milliseconds}) + "\n"
        try:
            # One write per line: two processes that measure at the same time do not mix their lines.
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise UsageError(f"timings cannot be kept in {self.path}: {error.strerror}") from error

    def _read(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
            if text and not text.endswith("\n"):  # the process was killed while it wrote the line
                with path.open("a", encoding="utf-8") as file:
                    file.write("\n")
        except OSError as error:
            raise UsageError(
                f"timings cannot be kept in {path}: {error.strerror}; set {CACHE} to a writable folder"
            ) from error
        for line in text.splitlines():
            entry = _parse(line)
            if entry is not None:
                self._known[entry[0], entry[1]] = entry[2]


def _parse(line: str) -> tuple[str, str, float] | None:
    """Parse a line; return None for a damaged one, so that its time is measured again."""
    try:
        data = json.loads(line)
        milliseconds = float(data["ms"])
        found = str(data["conditions"]), str(data["what"]), milliseconds
    except (ValueError, KeyError, TypeError):
        return None
    return found if math.isfinite(milliseconds) and milliseconds >= 0 else None
