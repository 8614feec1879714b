"""Networks in PyTorch itself, in the ways that may be faster than the plain one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.devices import device_of, wait
from secateur.errors import UsageError
from secateur.latency import RUNTIMES
from secateur.runtimes.base import Batch, Runner

IN_PYTORCH = tuple(RUNTIMES)
"""Names of the ways."""


def prepare(runtime: str, model: nn.Module) -> Runner:
    """Makes a network ready in PyTorch; the network itself is left as it is.

    Args:
        runtime: ``eager``, ``channels-last``, ``compile`` or ``bf16``.
        model: the network.

    Returns:
        What runs it, in evaluation mode, with PyTorch's own number of threads.

    Raises:
        UsageError: there is no such way.

    >>> prepare("eager", nn.Linear(2, 3))(torch.randn(4, 2))[0].shape
    torch.Size([4, 3])
    """
    if runtime not in RUNTIMES:
        raise UsageError(f"PyTorch does not run networks by {runtime!r}: choose {', '.join(RUNTIMES)}")
    device, way = device_of(model), RUNTIMES[runtime]
    call = way.ready(model)

    def run(inputs: Batch) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            outputs = tree_leaves(call(*map(way.laid_out, inputs)))
        wait(device)
        return tuple(item for item in outputs if isinstance(item, Tensor))

    return Runner(runtime, run, device=device)
