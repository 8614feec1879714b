from __future__ import annotations

import importlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from secateur import _torchvision_operators
from secateur._torchvision import torchvision, v2


def test_models_run():
    model = torchvision.models.resnet18(num_classes=3)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_transforms_agree_with_arithmetic():
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    scale = v2.ToDtype(torch.float32, scale=True)
    steps = v2.Compose([v2.PILToTensor(), scale, v2.Normalize([0.5] * 3, [0.25] * 3)])
    expected = (np.arange(48).reshape(4, 4, 3).transpose(2, 0, 1) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(steps(image).numpy(), expected, rtol=1e-5)


def test_image_folder_reads_images(tmp_path):
    (tmp_path / "red").mkdir()
    Image.new("RGB", (5, 4), (255, 0, 0)).save(tmp_path / "red" / "one.png")
    [(image, target)] = torchvision.datasets.ImageFolder(tmp_path)
    assert (image.size, image.getpixel((0, 0)), target) == ((5, 4), (255, 0, 0), 0)


def test_operators_are_declared_only_when_missing():
    # Without Secateur, importing torchvision shows whether its own operators can be loaded.
    plain = subprocess.run([sys.executable, "-c", "import torchvision"], check=False, capture_output=True)
    assert (not _torchvision_operators._libraries) == (plain.returncode == 0)
    assert hasattr(torch.ops.torchvision, "nms")


@pytest.mark.parametrize(
    "modules",
    [
        "timm, torchvision, torchvision.transforms.v2",
        pytest.param("torchvision", marks=pytest.mark.slow),
        pytest.param("torchvision.transforms.v2", marks=pytest.mark.slow),
    ],
)
def test_it_can_be_imported_after_secateur(modules):
    code = f"import sys, secateur; assert 'torch' not in sys.modules; import {modules}"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, env=environment)


def test_a_later_import_is_the_same_module():
    assert importlib.import_module("torchvision") is torchvision
