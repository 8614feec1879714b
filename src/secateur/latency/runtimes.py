"""Runtimes: the ways in which PyTorch may run a network."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from secateur.devices import channels_last, device_of
from secateur.errors import UsageError
from secateur.graph.capture import ExampleInputs, call_arguments, mode_of

Forward = Callable[[], object]
"""Runs a prepared network once."""


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


class InPyTorch:
    """The network as it is, operator by operator; other ways of PyTorch differ from this one."""

    name = "eager"

    def prepare(self, model: nn.Module, inputs: ExampleInputs) -> Forward:
        """What runs the network once on these inputs, in evaluation mode."""
        args, kwargs = call_arguments(tree_map_only(Tensor, self.laid_out, inputs))
        call = self.ready(model)
        return lambda: call(*args, **kwargs)

    def ready(self, model: nn.Module) -> Callable[..., object]:
        """What runs the network on any inputs that are laid out, in evaluation mode.

        Args:
            model: the network, which is left as it is.
        """
        if not any(module.training for module in model.modules()):
            return model

        def call(*args: object, **kwargs: object) -> object:
            with mode_of(model, training=False):
                return model(*args, **kwargs)

        return call

    def laid_out(self, tensor: Tensor) -> Tensor:
        """An input as it lies in memory."""
        return tensor


class _ChannelsLast(InPyTorch):
    """Operator by operator, with the channels of a position side by side in memory."""

    name = "channels-last"

    def ready(self, model: nn.Module) -> Callable[..., object]:
        """A copy of the network in that layout."""
        copied = _copy(model)
        for tensor in (*copied.parameters(), *copied.buffers()):
            tensor.data = channels_last(tensor.data)
        return copied

    def laid_out(self, tensor: Tensor) -> Tensor:
        """An input in that layout."""
        return channels_last(tensor)


class _Compiled(InPyTorch):
    """The network through ``torch.compile``."""

    name = "compile"

    def prepare(self, model: nn.Module, inputs: ExampleInputs) -> Forward:
        """What was run once, so that the compilation is not timed."""
        forward = super().prepare(model, inputs)
        forward()
        return forward

    def ready(self, model: nn.Module) -> Callable[..., object]:
        """A copy, compiled at its first run."""
        with _unwarned():
            compiled = torch.compile(_copy(model))

        def call(*args: object, **kwargs: object) -> object:
            try:
                with _unwarned():
                    return compiled(*args, **kwargs)
            except Exception as error:  # a missing C++ compiler shows itself in many ways
                first = next((line for line in str(error).splitlines() if line.strip()), "")
                raise UsageError(
                    f"torch.compile cannot run this network here ({type(error).__name__}: {first.strip()}); "
                    "take another runtime"
                ) from error

        return call


class _Autocast(InPyTorch):
    """Operator by operator, with matrix products in bfloat16."""

    name = "bf16"

    def ready(self, model: nn.Module) -> Callable[..., object]:
        """The network under autocast."""
        kind = device_of(model).type
        plain = super().ready(model)

        def call(*args: object, **kwargs: object) -> object:
            with torch.autocast(kind, torch.bfloat16):
                return plain(*args, **kwargs)

        return call


RUNTIMES: Mapping[str, InPyTorch] = MappingProxyType(
    {runtime.name: runtime for runtime in (InPyTorch(), _ChannelsLast(), _Compiled(), _Autocast())}
)
"""The runtimes of PyTorch, by name."""


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


def _copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).eval()


@contextmanager
def _unwarned() -> Iterator[None]:
    """What the compiler deprecates within itself is not for our users to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
