"""Every torchvision classification CNN, with the smallest input that it takes."""

from __future__ import annotations

import torch
from torch import nn

from secateur.models import ModelSpec

FAMILIES: dict[str, tuple[str, ...]] = {
    "alexnet": ("alexnet",),
    "vgg": ("vgg11", "vgg13", "vgg16", "vgg19"),
    "vgg_bn": ("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"),
    "resnet": ("resnet18", "resnet50", "resnet34", "resnet101", "resnet152"),
    "wide_resnet": ("wide_resnet50_2", "wide_resnet101_2"),
    "resnext": ("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    "squeezenet": ("squeezenet1_0", "squeezenet1_1"),
    "densenet": ("densenet121", "densenet161", "densenet169", "densenet201"),
    "googlenet": ("googlenet",),
    "inception": ("inception_v3",),
    "mobilenet_v2": ("mobilenet_v2",),
    "mobilenet_v3": ("mobilenet_v3_small", "mobilenet_v3_large"),
    "mnasnet": ("mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3"),
    "efficientnet": tuple(f"efficientnet_b{size}" for size in range(8)),
    "efficientnet_v2": ("efficientnet_v2_s", "efficientnet_v2_m", "efficientnet_v2_l"),
    "regnet_x": tuple(
        f"regnet_x_{size}" for size in ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf")
    ),
    "regnet_y": tuple(
        f"regnet_y_{size}" for size in ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf")
    ),
    "shufflenet": tuple(f"shufflenet_v2_x{size}" for size in ("0_5", "1_0", "1_5", "2_0")),
    "convnext": ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large"),
}

QUICK = tuple(members[0] for members in FAMILIES.values())
"""One of each family, for the ordinary test run."""

REST = tuple(name for members in FAMILIES.values() for name in members[1:])

_SIZES = {"alexnet": 96, "inception_v3": 299, "googlenet": 96}
_BARE = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}


def example(name: str, batch: int = 2) -> torch.Tensor:
    """Random images of a size that the network accepts."""
    size = _SIZES.get(name, 64)
    return torch.randn(batch, 3, size, size)


def spec(name: str) -> ModelSpec:
    """What builds the network, with ten classes."""
    return ModelSpec.parse(name, classes=10, **_BARE.get(name, {}))


def build(name: str) -> nn.Module:
    """A network with random weights and random normalisation statistics, so that a wrong cut shows."""
    torch.manual_seed(0)
    model = spec(name).build()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    tensor.uniform_(0.5, 1.5)
        for key, parameter in model.named_parameters():
            if key.endswith("layer_scale"):
                parameter.uniform_(0.5, 1.5)
    return model
