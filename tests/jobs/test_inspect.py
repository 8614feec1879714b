from __future__ import annotations

from pathlib import Path

import pytest

from secateur.jobs.inspect import inspect
from secateur.jobs.settings import NetworkChoice
from secateur.training.events import Progress
from tests.recorder import Recorder


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


def test_what_a_plan_would_cost_is_said_without_data(made_up_device: None) -> None:
    network = NetworkChoice(source="secateur:digits", weights="none")
    heard = Recorder()
    found = inspect(network, limits={"latency": 0.6, "params": 0.5}, batch=4, callbacks=[heard])
    reach = found["forecast"]["reach"]
    assert found["forecast"]["impossible"] is None
    assert (
        reach["latency"]["planned"]
        <= reach["latency"]["allowed"]
        == pytest.approx(0.6 * reach["latency"]["now"], abs=1e-6)  # in whole nanoseconds
    )
    assert reach["params"]["planned"] <= reach["params"]["allowed"]
    assert all(item["least"] <= item["planned"] <= item["now"] for item in reach.values())
    assert any(isinstance(event, Progress) and event.task == "measuring latency" for event in heard)


def test_a_budget_out_of_reach_is_said_and_no_error(made_up_device: None) -> None:
    network = NetworkChoice(source="secateur:digits", weights="none")
    found = inspect(network, limits={"latency": "1us"})
    assert "the least possible is" in found["forecast"]["impossible"]
    assert found["forecast"]["reach"]["latency"]["planned"] is None


def test_a_budget_for_a_network_of_which_nothing_can_go(tmp_path: Path, made_up_device: None) -> None:
    code = "from torch.nn import *\ndef net():\n    return Sequential(Flatten(), Linear(12, 2))\n"
    (tmp_path / "nets.py").write_text(code)
    network = NetworkChoice(source=f"{tmp_path / 'nets.py'}:net", weights="none")
    forecast = inspect(network, (3, 2, 2), limits={"macs": 0.5, "latency": 0.5})["forecast"]
    assert forecast["reach"]["macs"]["least"] == forecast["reach"]["macs"]["now"] == 24
    assert forecast["reach"]["latency"]["least"] == forecast["reach"]["latency"]["now"]
    assert "the least possible is 24 (100.00%)" in forecast["impossible"]


def test_latency_is_measured_only_where_it_is_asked_for() -> None:
    network = NetworkChoice(source="secateur:digits", weights="none")
    assert "latency" not in inspect(network)["forecast"]["reach"]
