"""Networks for the tests of checkpoints, and a pair of shears."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Code that computes shapes with its own attributes, a tuple among them."""

    def __init__(self, heads=4, width=3):
        super().__init__()
        self.heads = heads
        self.grid = (heads, width)
        self.project = nn.Linear(6, heads * width)
        self.register_buffer("ramp", torch.linspace(0, 1, heads), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        split = self.project(x).unflatten(1, self.grid)
        return (split * self.ramp[:, None]).reshape(len(x), self.heads, -1).sum(1)


class Net(nn.Module):
    """Convolution, batch norm, grouped convolution, tied linear layers, and the above."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.fc = nn.Linear(8, 6)
        self.attention = Attention()
        self.again = nn.Linear(8, 6)
        self.again.weight = self.fc.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.bn(self.conv(x)).relu()).mean((2, 3))
        return self.attention(self.fc(x) + self.again(x))


def narrow(module: nn.Module, name: str, dim: int, keep: list[int]) -> None:
    """Leave only some slots of one dimension of a tensor."""
    tensor = getattr(module, name)
    smaller = tensor.detach().index_select(dim, torch.tensor(keep)).clone()
    is_parameter = isinstance(tensor, nn.Parameter)
    setattr(module, name, nn.Parameter(smaller, tensor.requires_grad) if is_parameter else smaller)


def cut_by_hand(net: Net, keep: list[int]) -> Net:
    """Leave some channels of the convolution, and the first two heads."""
    narrow(net.conv, "weight", 0, keep)
    for name in ("weight", "bias", "running_mean", "running_var"):
        narrow(net.bn, name, 0, keep)
    for name in ("weight", "bias"):
        narrow(net.depthwise, name, 0, keep)
    narrow(net.fc, "weight", 1, keep)
    net.again.weight = net.fc.weight
    count = len(keep)
    net.conv.out_channels = net.bn.num_features = net.fc.in_features = net.again.in_features = count
    net.depthwise.in_channels = net.depthwise.out_channels = net.depthwise.groups = count

    attention = net.attention
    for name in ("weight", "bias"):
        narrow(attention.project, name, 0, list(range(6)))
    attention.project.out_features = 6
    narrow(attention, "ramp", 0, [0, 1])
    attention.heads, attention.grid = 2, (2, 3)
    return net


def trained(net: nn.Module) -> nn.Module:
    """The network after a few steps in training mode, so that all buffers have moved."""
    with torch.no_grad():
        for _ in range(2):
            net.train()(torch.randn(4, 3, 8, 8))
    return net.eval()
