"""Run networks in PyTorch: eagerly, with channels last in memory, compiled, or under autocast."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from secateur.devices import channels_last, device_of
from secateur.errors import UsageError
from secateur.formats import first_line
from secateur.graph.capture.program import mode_of

Forward = Callable[..., object]
"""Runs a network on inputs in the layout of its runtime."""


@runtime_checkable
class PreparedNetwork(Protocol):
    """A network that is ready to run and is not a module, such as an opened exported file.

    It can be measured in place of a module.
    """

    @property
    def device(self) -> torch.device:
        """Return the device of its inputs."""

    @property
    def runtime(self) -> str:
        """Return the name of the runtime that runs it."""

    def __call__(self, *inputs: Tensor) -> object:
        """Run the network once; return when the result is ready."""


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class PyTorchRuntime:
    """A way to run networks in PyTorch.

    Attributes:
        name: the name in reports and among the kept timings.
        prepare: returns a function that runs a network in evaluation mode; it must not change the
            network, so it works on a copy if it changes anything.
        lay_out: returns an input in the memory layout that the prepared network reads.
        compiles: whether the first run compiles the network; that run is not timed.

    >>> twice = PyTorchRuntime("twice", lambda model: lambda x: (model(x), model(x)))
    >>> len(twice.prepare(nn.Identity())(torch.ones(1)))
    2
    """

    name: str
    prepare: Callable[[nn.Module], Forward]
    lay_out: Callable[[Tensor], Tensor] = _unchanged
    compiles: bool = False


def find_runtime(runtime: str | PyTorchRuntime) -> PyTorchRuntime:
    """Return the runtime of a name, or the given runtime itself.

    Raises:
        UsageError: there is none of that name.

    >>> find_runtime("channels-last").name
    'channels-last'
    """
    if isinstance(runtime, str):
        if runtime not in PYTORCH_RUNTIMES:
            raise UsageError(f"no runtime is called {runtime!r}; choose one of {', '.join(PYTORCH_RUNTIMES)}")
        return PYTORCH_RUNTIMES[runtime]
    return runtime


def _eager(model: nn.Module) -> Forward:
    """Run the network itself, in evaluation mode."""
    if not any(module.training for module in model.modules()):
        return model

    def call(*args: object, **kwargs: object) -> object:
        with mode_of(model, training=False):
            return model(*args, **kwargs)

    return call


def _with_channels_last(model: nn.Module) -> Forward:
    """Run a copy whose weights have channels last in memory."""
    copied = copy.deepcopy(model).eval()
    for tensor in (*copied.parameters(), *copied.buffers()):
        tensor.data = channels_last(tensor.data)
    return copied


def _compiled(model: nn.Module) -> Forward:
    """Run a copy through ``torch.compile``; the first run compiles it."""
    # Users cannot change what the compiler warns about.
    with warnings.catch_warnings(action="ignore"):
        compiled = torch.compile(copy.deepcopy(model).eval())

    def call(*args: object, **kwargs: object) -> object:
        try:
            with warnings.catch_warnings(action="ignore"):
                return compiled(*args, **kwargs)
        except Exception as error:  # a missing C++ compiler raises many kinds of errors
            raise UsageError(
                f"torch.compile cannot run this network here ({type(error).__name__}: {first_line(error)}); "
                "choose another runtime"
            ) from error

    return call


def _with_autocast(model: nn.Module) -> Forward:
    """Run the network with matrix products in bfloat16."""
    kind = device_of(model).type
    eager = _eager(model)

    def call(*args: object, **kwargs: object) -> object:
        with torch.autocast(kind, torch.bfloat16):
            return eager(*args, **kwargs)

    return call


PYTORCH_RUNTIMES: Mapping[str, PyTorchRuntime] = MappingProxyType(
    {
        runtime.name: runtime
        for runtime in (
            PyTorchRuntime("eager", _eager),
            PyTorchRuntime("channels-last", _with_channels_last, channels_last),
            PyTorchRuntime("compile", _compiled, compiles=True),
            PyTorchRuntime("bf16", _with_autocast),
        )
    }
)
"""The runtimes of PyTorch, by name."""
