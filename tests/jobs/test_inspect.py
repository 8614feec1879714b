from __future__ import annotations

from secateur.jobs.inspect import inspect
from secateur.jobs.settings import NetworkChoice


def test_couplings_reasons_and_costs_are_reported() -> None:
    found = inspect(NetworkChoice(source="resnet18", weights="none"), (3, 32, 32), ignore=["layer4"])
    assert found["model"] == "torchvision:resnet18"
    assert found["input"] == [3, 32, 32]
    groups = {group["name"]: group for group in found["groups"]}
    assert groups["conv1"]["written_by"] == ["conv1", "layer1.0.conv2", "layer1.1.conv2"]
    assert "layer2.0.downsample.0" in groups["conv1"]["read_by"]
    assert groups["conv1"]["frozen"] is None
    assert groups["fc"]["frozen"] == "is an output of the network"
    assert "on request" in groups["layer4.0.conv1"]["frozen"]
    assert sum(layer["macs"] for layer in found["layers"]) == found["cost"]["macs"]
