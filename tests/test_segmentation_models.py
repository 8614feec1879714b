"""Networks of segmentation_models_pytorch: decoders of every kind, on encoders of several libraries."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.libraries import QUIET
from tests.library_networks import check_cuts

pytestmark = QUIET

SLOW = pytest.mark.slow
NETWORKS = [
    ("FPN", "resnet18", 64),
    pytest.param("UnetPlusPlus", "resnet18", 64, marks=SLOW),
    pytest.param("MAnet", "resnet18", 64, marks=SLOW),
    pytest.param("Linknet", "resnet18", 64, marks=SLOW),
    pytest.param("PAN", "resnet18", 128, marks=SLOW),
    pytest.param("DeepLabV3Plus", "mobilenet_v2", 64, marks=SLOW),
    pytest.param("UPerNet", "mit_b0", 64, marks=SLOW),
    pytest.param("Segformer", "mit_b0", 64, marks=SLOW),
    pytest.param("MAnet", "efficientnet-b0", 64, marks=SLOW),
    pytest.param("Unet", "tu-convnext_atto", 64, marks=SLOW),
    pytest.param("Unet", "dpn68", 64, marks=SLOW),  # calls pieces of its containers
]


@pytest.mark.parametrize(("decoder", "encoder", "size"), NETWORKS)
def test_a_segmentation_network(decoder: str, encoder: str, size: int, tmp_path: Path) -> None:
    library = pytest.importorskip(
        "segmentation_models_pytorch", reason="needs segmentation_models_pytorch", exc_type=ImportError
    )

    def make() -> nn.Module:
        torch.manual_seed(0)
        net: nn.Module = getattr(library, decoder)(encoder_name=encoder, encoder_weights=None, classes=3)
        return net

    # Of grouped convolutions, whole groups go; of some encoders, the last layers are not used.
    check_cuts(make, torch.randn(2, 3, size, size), tmp_path, share=0.93)
