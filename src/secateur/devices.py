"""Find the device of a network, wait for a device, and lay tensors out with the channels last."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_IMAGES, _VOLUMES = 4, 5  # dimensions of a batch of images, and of volumes


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a network's first parameter or buffer; the CPU if it has none.

    >>> device_of(nn.Linear(2, 2))
    device(type='cpu')
    """
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def wait(device: torch.device) -> None:
    """Wait until a device has finished all work that was queued on it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    elif device.type == "xpu":
        torch.xpu.synchronize(device)


def channels_last(tensor: Tensor) -> Tensor:
    """Lay out a batch of images or volumes with the channels last in memory; return others unchanged."""
    if tensor.dim() == _IMAGES:
        return tensor.contiguous(memory_format=torch.channels_last)
    if tensor.dim() == _VOLUMES:
        return tensor.contiguous(memory_format=torch.channels_last_3d)
    return tensor
