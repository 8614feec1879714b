"""Networks of the benchmarks: published, trained before, or built by no library.

``secateur train --model benchmarks/networks.py:vgg11`` trains one of the last kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

import secateur as sec
from benchmarks.images import data_path
from secateur._torchvision import torchvision
from secateur.data import ImageData
from secateur.jobs.images import open_images
from secateur.jobs.networks import Network, input_of, open_network
from secateur.jobs.settings import DataChoice, NetworkChoice

TRAINED = {
    "resnet20": "--model secateur:resnet20 --weights cifar10_resnet20-12fca82f.th --data cifar10k --epochs 6 "
    "--lr 0.02 --batch-size 64 --schedule one-cycle",
    "resnet56": "--model secateur:resnet56 --weights cifar10_resnet56-4bfd9763.th --data cifar10k --epochs 5 "
    "--lr 0.02 --batch-size 64 --schedule one-cycle",
    "squeezenet": "--model squeezenet1_1 --weights squeezenet1_1_imagenet_features_only.pth "
    "--data cats_dogs --size 96 --epochs 6 --lr 0.003 --schedule one-cycle",
    "vgg11": "--model benchmarks/networks.py:vgg11 --data cats_dogs --size 32 --epochs 15 "
    "--optimizer adamw --lr 0.001 --schedule one-cycle",
    "vgg": "--model torchvision:vgg16_bn --weights none --data cats_dogs --size 48 --batch-size 50 "
    "--epochs 30 --optimizer adamw --lr 0.0004 --weight-decay 0.01 --schedule one-cycle",
}
"""Options of ``secateur train`` for networks that benchmarks start from; files lie in the data folder."""
BUILDERS = {"vgg11": "benchmarks/networks.py:vgg11"}


def renew(model: nn.Module) -> None:
    """Draw new random weights for all layers."""
    for module in model.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)


def vgg11(classes: int = 2) -> nn.Module:
    """Build the convolutions of VGG-11 with batch norm, their mean over positions, and one linear layer.

    Without the three linear layers of the original, which hold 97% of its parameters and are redundant for
    small images, the ablation of every channel takes minutes.
    """
    features = torchvision.models.vgg11_bn(weights=None).features
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


def bottlenecks() -> nn.Module:
    """Build ResNet-50 with blocks a quarter as wide and no stride at first, for images of 32 x 32 pixels."""
    import timm

    model: nn.Module = timm.create_model("resnet50", num_classes=10, channels=(16, 32, 64, 128))
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    return model


def vit() -> nn.Module:
    """Build a vision transformer of 8 layers, 96 wide, for images of 32 x 32 pixels in patches of 4 x 4."""
    import timm

    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=96, depth=8, num_heads=3, num_classes=10
    )


FROM_NOTHING: Mapping[str, Callable[[], nn.Module]] = {"bottlenecks": bottlenecks, "vit": vit}
"""Networks that a benchmark trains itself."""


def published(network: str, weights: str) -> nn.Module:
    """Build a network for CIFAR-10 with weights of the data folder, in evaluation mode."""
    return sec.build(f"secateur:{network}", weights=data_path(weights)).eval()


def trained(run: str, source: str, batch_size: int = 64) -> tuple[Network, ImageData]:
    """Open a network that was trained before, in evaluation mode, and images as it takes them.

    Args:
        run: name in ``TRAINED``: its folder lies in the data folder.
        source: folder of images there.
        batch_size: of the images.

    Raises:
        SystemExit: there is no such run; the message says which command makes it.
    """
    folder = data_path(".") / run
    if not folder.is_dir():
        how = f"make it with: secateur train {TRAINED[run]} --out {folder}" if run in TRAINED else ""
        raise SystemExit(f"{folder} does not exist; {how}")
    choice = NetworkChoice(source=str(folder), builder=BUILDERS.get(run))
    images = DataChoice(source=str(data_path(source)), batch_size=batch_size)
    data = open_images(images, input_of(choice), seed=0)
    network = open_network(choice, data.classes)
    network.model.eval()
    return network, data
