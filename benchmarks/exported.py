"""Networks that are pruned and written as checkpoints and ONNX files, for the benchmarks of export.

Weights are random, but normalisation statistics are those of the inputs: neither agreement nor time depends
on more. Half of the MACs are cut by magnitude, in steps of eight channels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import secateur as sec
from secateur.models import ModelSpec
from secateur.recipes import Recipe

NETWORKS = {
    "vgg16_bn": "torchvision:vgg16_bn",
    "resnet50": "torchvision:resnet50",
    "mobilenet_v2": "torchvision:mobilenet_v2",
    "squeezenet1_1": "torchvision:squeezenet1_1",
    "densenet121": "torchvision:densenet121",
    "vit_tiny": "timm:vit_tiny_patch16_224",
}
VERSIONS = ("original", "pruned")
SHARE = 0.5
EIGHTS = Recipe.preset("one-shot", widths={"multiple_of": 8})


def checkpoints(name: str, folder: Path) -> dict[str, Path]:
    """Prune a network and save it and the original, where that was not done before."""
    files = {version: folder / f"{name}-{version}.safetensors" for version in VERSIONS}
    if not files["pruned"].exists():
        folder.mkdir(parents=True, exist_ok=True)
        model, spec = original(name)
        inputs = spec.input.example(2)
        cut = sec.prune(model, inputs, sec.Budget(macs=SHARE), "magnitude", recipe=EIGHTS)
        sec.save(files["original"], model, builder=spec)
        sec.save(files["pruned"], cut.model, builder=spec)
    return files


def original(name: str) -> tuple[nn.Module, ModelSpec]:
    """Build a network with random weights, whose normalisations have seen some inputs."""
    torch.manual_seed(0)
    spec = ModelSpec.parse(NETWORKS[name])
    model = spec.build()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, *spec.input.size))
    return model.eval(), spec
