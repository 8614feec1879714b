"""Define a convolutional network for handwritten digits that is far larger than the task needs.

The demonstration prunes it: most of its channels can be removed without loss of accuracy.
"""

from __future__ import annotations

from torch import Tensor, nn


class DigitsNet(nn.Module):
    """Four convolutions with batch norm and two linear layers: 0.39 million parameters, 4.9 million MACs.

    Args:
        num_classes: outputs.

    >>> import torch
    >>> DigitsNet()(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(1, 32),
            *_convolution(32, 64),
            nn.MaxPool2d(2),
            *_convolution(64, 128),
            *_convolution(128, 128),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(128 * 2 * 2, 256),
            nn.ReLU(),
            nn.Linear(256, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map images, shape (N, 1, 8, 8), to logits, shape (N, num_classes)."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    # Batch norm adds a shift, so the convolution needs no bias.
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
