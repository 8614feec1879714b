from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import secateur as sec
from secateur.errors import CheckpointError, DataError, UsageError
from secateur.jobs.networks import open_network
from secateur.jobs.settings import NetworkChoice, is_checkpoint


def test_what_names_a_checkpoint_and_what_a_network(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("")
    assert is_checkpoint(str(tmp_path))
    assert is_checkpoint("runs/absent")
    assert is_checkpoint("small.safetensors")
    assert not is_checkpoint("resnet18")
    assert not is_checkpoint("timm:resnet50.a1_in1k")
    assert not is_checkpoint("hf:models/bert")
    assert not is_checkpoint(f"{tmp_path}/mine.py:network")


def test_a_checkpoint_tells_its_own_classes_apart(trained: Path) -> None:
    choice = NetworkChoice(source=str(trained))
    assert open_network(choice, list("0123456789")).classes == tuple("0123456789")
    with pytest.raises(
        DataError, match=r"has the classes 0, 1, 2, 3 and 6 more, but the data has cats, dogs"
    ):
        open_network(choice, ["cats", "dogs"])
    with pytest.raises(UsageError, match="contains weights already"):
        open_network(NetworkChoice(source=str(trained), weights="none"))


def test_what_is_saved_comes_back_bit_for_bit_or_is_reported(trained: Path, tmp_path: Path) -> None:
    network = open_network(NetworkChoice(source=str(trained)))
    file = tmp_path / "copy.safetensors"
    with torch.no_grad():
        network.model.features[0].weight[0, 0, 0, 0] = float("nan")
    network.save(file, {"validation_top1": 0.5})
    network.reload(file)
    metadata = sec.checkpoint.read_metadata(file)
    assert metadata.metrics == {"validation_top1": 0.5}
    assert metadata.input == network.input
    json.dumps(metadata.history)
    with torch.no_grad():
        network.model.features[3].weight[0, 0, 0, 0] += 1e-7
    with pytest.raises(CheckpointError, match="does not give back"):
        network.reload(file)


def test_images_may_have_another_size() -> None:
    network = open_network(NetworkChoice(source="resnet18", weights="none", size=32, classes=5))
    assert network.input.size == (3, 32, 32)
    assert network.model(network.example(3)).shape == (3, 5)
