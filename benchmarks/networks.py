"""Networks of the benchmarks that no library builds: ``--model benchmarks/networks.py:vgg11``."""

from __future__ import annotations

from torch import nn

from secateur._torchvision import torchvision


def renew(model: nn.Module) -> None:
    """New random weights throughout."""
    for module in model.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)


def vgg11(classes: int = 2) -> nn.Module:
    """The convolutions of VGG-11 with batch norm, their mean over positions, and one linear layer.

    Without the three linear layers of the original, which hold 97% of its parameters and all say the same
    of small pictures, the oracle of every channel takes minutes.
    """
    features = torchvision.models.vgg11_bn(weights=None).features
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))
