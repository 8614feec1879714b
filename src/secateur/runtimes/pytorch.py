"""Run networks in PyTorch itself: eager, channels-last, compiled or in bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.devices import device_of, wait
from secateur.errors import UsageError
from secateur.latency import PYTORCH_RUNTIMES
from secateur.outputs import parts_of
from secateur.runtimes.base import Batch, Runner

IN_PYTORCH = tuple(PYTORCH_RUNTIMES)
"""Names of the runtimes in PyTorch."""


def prepare(runtime: str, model: nn.Module) -> Runner:
    """Prepare a network in PyTorch; the network itself does not change.

    Args:
        runtime: ``eager``, ``channels-last``, ``compile`` or ``bf16``.
        model: the network.

    Returns:
        The runner, in evaluation mode, with PyTorch's number of threads.

    Raises:
        UsageError: there is no such runtime.

    >>> prepare("eager", nn.Linear(2, 3))(torch.randn(4, 2))[0].shape
    torch.Size([4, 3])
    """
    if runtime not in PYTORCH_RUNTIMES:
        raise UsageError(
            f"PyTorch does not run networks by {runtime!r}: choose {', '.join(PYTORCH_RUNTIMES)}"
        )
    device, chosen = device_of(model), PYTORCH_RUNTIMES[runtime]
    call = chosen.prepare(model)

    def run(inputs: Batch) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            outputs = parts_of(call(*map(chosen.lay_out, inputs))).tensors
        wait(device)
        return outputs

    return Runner(runtime, run, device=device)
