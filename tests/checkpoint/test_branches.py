"""Checkpoints of networks that have lost residual branches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import secateur as sec
from secateur.checkpoint import ModelSpec, read_metadata
from secateur.checkpoint.checksum import with_checksum
from secateur.errors import CheckpointError
from secateur.graph.substitutes import replacements_in
from tests.graph.residual_networks import Attending, Basic, Chain, Nested, Whole, randomised
from tests.graph.test_branches import X, half_of


def make() -> nn.Module:
    return Chain(Basic(6, 5), Whole(6, 4), Nested(6, 5))


def check_same(one: nn.Module, other: nn.Module) -> None:
    found, expected = one.state_dict(), other.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert replacements_in(one) == replacements_in(other)


@pytest.mark.parametrize("seed", range(4))
def test_a_users_network_is_loaded_bit_for_bit(tmp_path: Path, seed: int) -> None:
    model = randomised(make(), seed)
    graph = sec.trace(model, X)
    small = sec.apply_plan(model, half_of(graph, seed))
    sec.save(tmp_path / "a.safetensors", small)
    again = sec.load(tmp_path / "a.safetensors", model=make())
    check_same(again, small)
    assert torch.equal(again(X), small(X))


def test_named_arguments_and_tuples(tmp_path: Path) -> None:
    model, x = randomised(Attending(6, 5)), torch.randn(2, 3, 6)
    graph = sec.trace(model, x)
    small = sec.apply_plan(model, sec.PruningPlan(graph, {}, ["attention"]))
    sec.save(tmp_path / "a.safetensors", small)
    again = sec.load(tmp_path / "a.safetensors", model=Attending(6, 5))
    check_same(again, small)
    assert torch.equal(again(x), small(x))


def test_a_built_network_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    model, x = sec.build("torchvision:resnet18", classes=3).eval(), torch.randn(2, 3, 32, 32)
    graph = sec.trace(model, x)
    small = sec.apply_plan(model, half_of(graph, 0))
    spec = ModelSpec.parse("torchvision:resnet18", classes=3)
    sec.save(tmp_path / "a.safetensors", small, builder=spec)
    again = sec.load(tmp_path / "a.safetensors")
    check_same(again, small)
    assert torch.equal(again(x), small(x))
    assert read_metadata(tmp_path / "a.safetensors").replaced == replacements_in(small)


def test_a_file_that_does_not_fit_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    model = randomised(make())
    graph = sec.trace(model, X)
    small = sec.apply_plan(model, sec.PruningPlan(graph, {}, ["blocks.1"]))
    path = tmp_path / "a.safetensors"
    sec.save(path, small)
    for other in (Chain(Basic(6, 5), Whole(6, 4), Basic(6, 5)), Chain(Basic(6, 5), Whole(6, 4))):
        before = str(other)
        with pytest.raises(CheckpointError, match="lacks"):
            sec.load(path, model=other)
        assert str(other) == before
    with pytest.raises(CheckpointError, match="the network has no module 'blocks.1'"):
        sec.load(path, model=Chain(Basic(6, 5)))


def test_data_of_another_form_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    sec.save(path, randomised(make()))
    stored = load_file(path)
    data = json.loads(read_metadata(path).to_json())
    for wrong in ("x", [3], [{"path": "blocks.1"}]):
        save_file(stored, path, metadata=with_checksum(json.dumps(data | {"replaced": wrong}), stored))
        with pytest.raises(CheckpointError, match="unknown form"):
            sec.load(path, model=make())
