from __future__ import annotations

from pathlib import Path

import pytest
import torch

import secateur as sec
from secateur.errors import UsageError
from secateur.jobs.measure import measure
from secateur.jobs.settings import DataChoice, NetworkChoice


def test_networks_are_measured_beside_each_other(trained: Path) -> None:
    choices = [
        NetworkChoice(source=str(trained)),
        NetworkChoice(source="secateur:digits", weights="none"),
    ]
    found = measure(choices, DataChoice(source="digits"), seconds=0, batch=4)
    first, second = found["networks"]
    needs = sec.cost(sec.build("secateur:digits"), torch.zeros(1, 1, 8, 8))
    assert (
        (first["macs"], first["params"]) == (second["macs"], second["params"]) == (needs.macs, needs.params)
    )
    assert first["file_bytes"] == (trained / "checkpoints" / "best.safetensors").stat().st_size
    assert second["file_bytes"] is None
    assert first["top1"] > 0.5 > second["top1"]
    assert found["latency"]["batch"] == 4
    assert first["latency_ms"] > 0


def test_inputs_of_different_sizes_cannot_be_timed_together(trained: Path) -> None:
    choices = [NetworkChoice(source=str(trained)), NetworkChoice(source="resnet18", weights="none")]
    with pytest.raises(UsageError, match="1x8x8 and 3x224x224; give one --size"):
        measure(choices)
