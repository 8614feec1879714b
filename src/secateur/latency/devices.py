"""Devices: where a network lies, and when a device is done."""

from __future__ import annotations

import torch
from torch import nn


def device_of(model: nn.Module) -> torch.device:
    """The device of the network's first parameter or buffer, the CPU if it has none.

    >>> device_of(nn.Linear(2, 2))
    device(type='cpu')
    """
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def wait(device: torch.device) -> None:
    """Waits until a device has done all that it was given.

    Args:
        device: where work may be under way.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    elif device.type == "xpu":
        torch.xpu.synchronize(device)
