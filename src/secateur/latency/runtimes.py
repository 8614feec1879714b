"""Runtimes: the ways in which a network may be run while the clock is on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from secateur.errors import UsageError
from secateur.graph.capture import ExampleInputs, call_arguments, mode_of

Forward = Callable[[], object]
"""Runs a prepared network once."""

_PICTURES, _VOLUMES = 4, 5  # dimensions of a batch of pictures, and of volumes


@runtime_checkable
class Runtime(Protocol):
    """A way to run a network. Give your own to :func:`secateur.measure_latency` as it is.

    Attributes:
        name: what a table calls it.
    """

    @property
    def name(self) -> str:
        """What a table calls it."""

    def prepare(self, model: nn.Module, inputs: ExampleInputs) -> Forward:
        """Makes ready, outside of the clock, what runs the network once.

        Args:
            model: the network, which must be left as it is: work on a copy.
            inputs: what to call it with, on its device.
        """


@runtime_checkable
class Session(Protocol):
    """A network that is no module any more, such as an exported file that was opened.

    It may stand wherever a network is measured.
    """

    @property
    def device(self) -> torch.device:
        """Where it takes its inputs."""

    @property
    def runtime(self) -> str:
        """Name of what runs it."""

    def __call__(self, *inputs: Tensor) -> object:
        """Runs it once; returns when the result is there."""


class Eager:
    """The network as it is, operator by operator."""

    name = "eager"

    def prepare(self, model: nn.Module, inputs: ExampleInputs) -> Forward:
        """The forward pass in evaluation mode; the network's mode is put back after each run."""
        args, kwargs = call_arguments(inputs)

        def forward() -> object:
            with mode_of(model, training=False):
                return model(*args, **kwargs)

        return forward


class ChannelsLast:
    """Operator by operator, with the channels of a position side by side in memory."""

    name = "channels-last"

    def prepare(self, model: nn.Module, inputs: ExampleInputs) -> Forward:
        """A copy of the network and the inputs in that layout."""
        laid_out = tree_map_only(Tensor, channels_last, inputs)
        copied = _copy(model)
        for tensor in (*copied.parameters(), *copied.buffers()):
            tensor.data = channels_last(tensor.data)
        return _forward(copied, laid_out)


class Compiled:
    """The network through ``torch.compile``; the compilation is not timed."""

    name = "compile"

    def prepare(self, model: nn.Module, inputs: ExampleInputs) -> Forward:
        """A compiled copy, run once."""
        forward = _forward(torch.compile(_copy(model)), inputs)
        try:
            forward()
        except Exception as error:
            first = next((line for line in str(error).splitlines() if line.strip()), "")
            raise UsageError(
                f"torch.compile cannot run this network here ({type(error).__name__}: {first.strip()}); "
                "take another runtime"
            ) from error
        return forward


class Autocast:
    """Operator by operator, with matrix products in bfloat16."""

    name = "bf16"

    def prepare(self, model: nn.Module, inputs: ExampleInputs) -> Forward:
        """The forward pass under autocast."""
        device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), None)
        kind = device.type if device is not None else "cpu"
        plain = Eager().prepare(model, inputs)

        def forward() -> object:
            with torch.autocast(kind, torch.bfloat16):
                return plain()

        return forward


RUNTIMES: Mapping[str, Runtime] = MappingProxyType(
    {runtime.name: runtime for runtime in (Eager(), ChannelsLast(), Compiled(), Autocast())}
)
"""The runtimes that have names."""


def find_runtime(runtime: str | Runtime) -> Runtime:
    """A runtime by its name, or the one that was given.

    Raises:
        UsageError: there is none of that name.

    >>> find_runtime("channels-last").name
    'channels-last'
    """
    if isinstance(runtime, str):
        if runtime not in RUNTIMES:
            raise UsageError(f"no runtime is called {runtime!r}; choose one of {', '.join(RUNTIMES)}")
        return RUNTIMES[runtime]
    return runtime


def channels_last(tensor: Tensor) -> Tensor:
    """A tensor with its second dimension last in memory, where it holds pictures or volumes."""
    if tensor.dim() == _PICTURES:
        return tensor.contiguous(memory_format=torch.channels_last)
    if tensor.dim() == _VOLUMES:
        return tensor.contiguous(memory_format=torch.channels_last_3d)
    return tensor


def _copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).eval()


def _forward(model: Callable[..., object], inputs: ExampleInputs) -> Forward:
    args, kwargs = call_arguments(inputs)
    return lambda: model(*args, **kwargs)
