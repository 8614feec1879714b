"""Define residual networks for 32 by 32 images (He et al., "Deep Residual Learning", 2016, section 4.2).

Three stages of 16, 32 and 64 channels; ``6n + 2`` layers have n blocks per stage. At the start of a stage,
the shortcut takes every second pixel and pads the missing channels with zeros (their option A, without
parameters). Parameters have the same names as in the published CIFAR-10 weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PaddedShortcut(nn.Module):
    """Shortcut of option A: every second pixel, with zero channels before and after.

    Args:
        before: number of zero channels before the others.
        after: number of zero channels after the others.

    >>> PaddedShortcut(1, 2)(torch.ones(1, 3, 4, 4)).shape
    torch.Size([1, 6, 2, 2])
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.before = before
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        """Map shape (N, C, H, W) to (N, before + C + after, H / 2, W / 2)."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3 by 3 convolutions and a shortcut.

    Args:
        inputs: input channels.
        outputs: output channels.
        stride: of the first convolution; 2 at the start of a stage.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        before = (outputs - inputs) // 2
        self.shortcut = nn.Identity() if stride == 1 else PaddedShortcut(before, outputs - inputs - before)

    def forward(self, x: Tensor) -> Tensor:
        """Map shape (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """A residual network of ``6 * blocks + 2`` layers.

    Args:
        blocks: blocks in each of the three stages.
        num_classes: outputs.
    """

    def __init__(self, blocks: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map images, shape (N, 3, H, W), to logits, shape (N, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return logits


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs) for _ in range(blocks - 1)))


def resnet20(num_classes: int = 10) -> CifarResNet:
    """Build ResNet-20: 0.27 million parameters, 41 million MACs."""
    return CifarResNet(3, num_classes)


def resnet56(num_classes: int = 10) -> CifarResNet:
    """Build ResNet-56: 0.85 million parameters, 126 million MACs."""
    return CifarResNet(9, num_classes)
