"""Networks in PyTorch itself, in the ways that may be faster than the plain one."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.errors import UsageError
from secateur.latency import device_of
from secateur.runtimes.base import Batch, Runner, first_line

EAGER, CHANNELS_LAST, COMPILE, BF16 = "eager", "channels-last", "compile", "bf16"


def prepare(runtime: str, model: nn.Module) -> Runner:
    """Makes a network ready in PyTorch; the network itself is left as it is.

    Args:
        runtime: ``eager``, ``channels-last``, ``compile`` or ``bf16``.
        model: the network.

    Returns:
        What runs it, in evaluation mode, with PyTorch's own number of threads.

    Raises:
        UsageError: there is no such way.

    >>> prepare("eager", nn.Linear(2, 3))(torch.zeros(4, 2))[0].shape
    torch.Size([4, 3])
    """
    if runtime not in _WAYS:
        raise UsageError(f"PyTorch does not run networks by {runtime!r}: choose {', '.join(_WAYS)}")
    device = device_of(model)
    call = _WAYS[runtime](copy.deepcopy(model).eval())

    def run(inputs: Batch) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            outputs = tuple(item for item in tree_leaves(call(inputs)) if isinstance(item, Tensor))
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return outputs

    return Runner(runtime, run, device=device)


Call = Callable[[Batch], object]


def _eager(model: nn.Module) -> Call:
    return lambda inputs: model(*inputs)


def _channels_last(model: nn.Module) -> Call:
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return lambda inputs: model(*map(_laid_out, inputs))


def _laid_out(item: Tensor) -> Tensor:
    return item.contiguous(memory_format=torch.channels_last) if item.ndim == 4 else item


def _bf16(model: nn.Module) -> Call:
    kind = device_of(model).type

    def call(inputs: Batch) -> object:
        with torch.autocast(kind, dtype=torch.bfloat16):
            return model(*inputs)

    return call


def _compile(model: nn.Module) -> Call:
    with _unwarned():
        compiled = torch.compile(model)

    def call(inputs: Batch) -> object:
        try:
            with _unwarned():
                return compiled(*inputs)
        except Exception as error:  # a missing C++ compiler shows itself in many ways
            raise UsageError(f"torch.compile cannot run this network here: {first_line(error)}") from error

    return call


@contextmanager
def _unwarned() -> Iterator[None]:
    """What the compiler deprecates within itself is not for our users to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


_WAYS: dict[str, Callable[[nn.Module], Call]] = {
    EAGER: _eager,
    CHANNELS_LAST: _channels_last,
    COMPILE: _compile,
    BF16: _bf16,
}
