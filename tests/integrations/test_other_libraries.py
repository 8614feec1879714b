"""Networks of ultralytics, diffusers and segmentation-models-pytorch by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import secateur as sec
from secateur.errors import CheckpointError, UsageError
from secateur.integrations.libraries import PACKAGES
from secateur.models import ModelSpec
from secateur.models.families import FAMILIES
from secateur.outputs import parts_of
from tests.libraries import QUIET

pytestmark = QUIET

UNET = {
    "_class_name": "UNet2DModel",
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}


def config(folder: Path, **settings: object) -> str:
    (folder / "config.json").write_text(json.dumps(settings))
    return f"diffusers:{folder}"


@pytest.mark.parametrize(
    ("name", "kind", "maps"),
    [
        ("yolov8n.yaml", "DetectionModel", 3),
        ("yolov8n", "DetectionModel", 3),
        pytest.param("yolov10n.yaml", "DetectionModel", 3, marks=pytest.mark.slow),
        pytest.param("yolo11n-seg.yaml", "SegmentationModel", 3, marks=pytest.mark.slow),
        ("yolov8n-cls.yaml", "ClassificationModel", 3),
    ],
)
def test_detectors(name: str, kind: str, maps: int, tmp_path: Path) -> None:
    pytest.importorskip("ultralytics")
    spec = ModelSpec.parse(f"ultralytics:{name}", classes=4, image_size=64)
    assert spec.input.size == (maps, 64, 64)
    model = spec.build().eval()
    assert type(model).__name__ == kind
    assert model.yaml["nc"] == 4
    assert all(parameter.requires_grad for parameter in model.parameters())
    sec.save(tmp_path / "net.safetensors", model, builder=spec)
    again, images = sec.load(tmp_path / "net.safetensors"), spec.input.example(2)
    with torch.no_grad():
        pairs = zip(parts_of(again(images)).tensors, parts_of(model(images)).tensors, strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("yolov8n.pt", "is a pickle, which can run code, and is not opened"),
        ("yolov99.yaml", "has no network"),
        ("./mine.yaml", "a file of yours, which can name code"),
        ("yolov8-world.yaml", "built in Python only"),
    ],
)
def test_detectors_that_are_refused(name: str, words: str) -> None:
    pytest.importorskip("ultralytics")
    with pytest.raises(UsageError, match=words):
        sec.build(f"ultralytics:{name}")


def test_unets(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    spec = ModelSpec.parse(config(tmp_path, **UNET))
    model = spec.build().eval()
    inputs = spec.inputs.example(2)
    assert {name: tuple(tensor.shape) for name, tensor in inputs.items()} == {
        "sample": (2, 3, 8, 8),
        "timestep": (2,),
    }
    sec.save(tmp_path / "net.safetensors", model, builder=spec)
    again = sec.load(tmp_path / "net.safetensors")
    with torch.no_grad():
        assert torch.equal(again(**inputs).sample, model(**inputs).sample)


def test_autoencoders_take_pictures(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    name = config(
        tmp_path, _class_name="AutoencoderKL", sample_size=16, block_out_channels=[8], norm_num_groups=4
    )
    spec = ModelSpec.parse(name)
    assert spec.input.size == (3, 16, 16)
    with torch.no_grad():
        assert spec.build().eval()(spec.input.example(2)).sample.shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "no _class_name"),
        ({"_class_name": "DiffusionPipeline"}, "has no network 'DiffusionPipeline'"),
        ({"_class_name": "MotionAdapter"}, "pass them in Python"),
        ({**UNET, "_class_name": "UNet2DConditionModel", "addition_embed_type": "text_time"}, "in Python"),
    ],
)
def test_networks_of_diffusers_that_are_refused(settings, words, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    with pytest.raises(UsageError, match=words):
        _ = ModelSpec.parse(config(tmp_path, **settings)).inputs


def test_segmentation(tmp_path: Path) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    spec = ModelSpec.parse("smp:Unet/resnet18", classes=3, image_size=64, in_channels=1)
    model, images = spec.build().eval(), spec.input.example(2)
    with torch.no_grad():
        assert model(images).shape == (2, 3, 64, 64)
    sec.save(tmp_path / "net.safetensors", model, builder=spec)
    with torch.no_grad():
        assert torch.equal(sec.load(tmp_path / "net.safetensors")(images), model(images))
    for name, words in (
        ("Unet", "names no encoder"),
        ("Unet/resnet19", "no encoder"),
        ("Vnet/resnet18", "no network"),
    ):
        with pytest.raises(UsageError, match=words):
            sec.build(f"smp:{name}")
    with pytest.raises(UsageError, match="encoder_weights"):
        sec.build("smp:Unet/resnet18", encoder_weights="imagenet")


@pytest.mark.parametrize("name", ["ultralytics:yolov8n.yaml", "smp:Unet/resnet18"])
def test_weights_are_not_fetched(name: str) -> None:
    library = {"ultralytics": "ultralytics", "smp": "segmentation_models_pytorch"}[name.partition(":")[0]]
    pytest.importorskip(library)
    with pytest.raises(CheckpointError, match="give a file"):
        sec.build(name, weights="default")


@pytest.mark.parametrize(
    ("name", "package"),
    [("ultralytics:yolov8n.yaml", "ultralytics"), ("smp:Unet/resnet18", "segmentation-models-pytorch")],
)
def test_a_missing_library_is_said(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert package in PACKAGES.values()
    monkeypatch.setattr("secateur.integrations.libraries.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=f"pip install {package}"):
        sec.build(name)


def test_importing_secateur_imports_no_library() -> None:
    code = f"import sys, secateur.models.families; print([name for name in {list(PACKAGES)} "
    code += "if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert {"hf", "ultralytics", "diffusers", "smp"} <= FAMILIES.keys()
