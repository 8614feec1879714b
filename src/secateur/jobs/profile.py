"""Where the time of a forward pass goes, module by module."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from secateur.devices import device_of
from secateur.graph.capture import mode_of
from secateur.untouched import untouched

_MIN_RUNS, _MAX_RUNS, _WARM_UP = 3, 200, 2


@dataclass(frozen=True)
class Profile:
    """Where the time of one network goes.

    Attributes:
        own_ms: for each module that ran, milliseconds spent in it and in none of its children: the median
            over the passes, and over a pass the sum of its calls.
        runs: number of passes.
    """

    own_ms: Mapping[str, float]
    runs: int


def profile(models: Mapping[str, nn.Module], inputs: Tensor, seconds: float = 1.0) -> dict[str, Profile]:
    """Times every module of networks that take turns, in evaluation mode.

    Every module is given a clock of a few microseconds, so the sum is somewhat more than the
    pass takes without. Modes and hooks are left as they were.

    Args:
        models: by name.
        inputs: an example batch that all of them take, on their device.
        seconds: spent on each, after which the pass that is under way is the last.

    Returns:
        The profiles by name.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    >>> found = profile({"net": net}, torch.ones(2, 4), seconds=0)["net"]
    >>> list(found.own_ms), found.runs
    (['', '0', '1'], 3)
    """
    passes: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    spent = 0.0
    with torch.inference_mode():
        for _ in range(_WARM_UP):
            for model in models.values():
                _timed(model, inputs)
        for number in range(_MAX_RUNS):
            for name, model in models.items():
                began = time.perf_counter()
                passes[name].append(_timed(model, inputs))
                spent += time.perf_counter() - began
            if number + 1 >= _MIN_RUNS and spent >= seconds * len(models):
                break
    return {name: _summary(found) for name, found in passes.items()}


def _summary(passes: list[dict[str, float]]) -> Profile:
    return Profile({name: median(each[name] for each in passes) for name in passes[0]}, len(passes))


def _timed(model: nn.Module, inputs: Tensor) -> dict[str, float]:
    """Milliseconds of one forward pass by module; in the order of the network."""
    clock = _Clock(_waiting(device_of(model)))
    with untouched(model), mode_of(model, training=False), clock.attached(model):
        model(inputs)
    return {name: clock.own_ms[name] for name, _ in model.named_modules() if name in clock.own_ms}


@dataclass
class _Clock:
    """Adds up the time of modules, less that of the modules that they call.

    Attributes:
        wait: returns when the device has done all that it was given.
        own_ms: milliseconds so far, by module.
    """

    wait: Callable[[], None]
    own_ms: dict[str, float] = field(default_factory=dict)
    _open: list[list[float]] = field(default_factory=list)

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Listens to all modules of a network."""
        handles = []
        try:
            for name, module in model.named_modules():
                handles.append(module.register_forward_pre_hook(self._begin))
                handles.append(module.register_forward_hook(self._end(name)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, *_: Any) -> None:
        self.wait()
        self._open.append([time.perf_counter(), 0.0])

    def _end(self, name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self.wait()
            began, inner = self._open.pop()
            took = time.perf_counter() - began
            self.own_ms[name] = self.own_ms.get(name, 0.0) + (took - inner) * 1e3
            if self._open:
                self._open[-1][1] += took

        return hook


def _waiting(device: torch.device) -> Callable[[], None]:
    if device.type == "cpu":
        return lambda: None
    return torch.accelerator.synchronize
