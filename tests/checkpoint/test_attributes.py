"""Attributes that a network sets while it runs come back, or saving says why they cannot."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import secateur as sec
from secateur.checkpoint import read_metadata
from secateur.checkpoint.checksum import with_checksum, without_checksum
from secateur.checkpoint.values import decoded, encoded, is_plain
from secateur.errors import CheckpointError


class Grid(nn.Module):
    """Keeps the shape that it saw last, and a grid of that shape."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 12, 3, padding=1)
        self.head = nn.Conv2d(12, 6, 1)
        self.grid: torch.Tensor | None = None
        self.shape: tuple[int, ...] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.head(self.body(x).relu())
        if self.shape != tuple(y.shape[2:]):
            self.shape = tuple(y.shape[2:])
            rows, columns = torch.meshgrid(*(torch.arange(n) for n in self.shape), indexing="ij")
            self.grid = torch.stack([rows, columns]).float()[None]
        assert self.grid is not None
        return y[:, :2].sigmoid() + self.grid


class State(nn.Module):
    """One layer, and an attribute of any value."""

    def __init__(self, value: Any = None) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.value = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 3, 4, 6)])
def test_a_network_that_keeps_the_last_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    network, x = Grid().eval(), torch.randn(2, 3, 8, 8)
    graph = sec.trace(network, x)
    small = sec.apply_plan(
        network,
        sec.make_plan(
            graph, sec.score(network, graph, "magnitude"), sec.Budget(channels=0.5), allocation="uniform"
        ),
    )
    small(x)
    sec.save(tmp_path / "a.safetensors", small)
    again = sec.load(tmp_path / "a.safetensors", model=Grid())
    assert again.shape == (8, 8)
    for inputs in (x, torch.randn(shape)):
        assert torch.equal(again(inputs), small(inputs))


VALUES = [
    None,
    True,
    3,
    2**40,
    2.5,
    float("inf"),
    "reflect",
    (8, 8),
    [1, 2],
    (1, (2.5, None), ["a", False]),
    torch.Size([4, 5]),
    torch.float16,
    (torch.int64, torch.Size([])),
    (),
    [],
]


@pytest.mark.parametrize("value", VALUES, ids=str)
@pytest.mark.parametrize("before", [None, 1, (1,), "text"], ids=str)
def test_values_of_every_kind_come_back(tmp_path: Path, value: Any, before: Any) -> None:
    saved, fresh = State(before), State(before)
    saved.value = value
    saved.made_later = value
    sec.save(tmp_path / "a.safetensors", saved)
    again = sec.load(tmp_path / "a.safetensors", model=fresh)
    assert again.value == value
    assert type(again.value) is type(value)
    assert again.made_later == value


def test_tensors_that_are_plain_attributes(tmp_path: Path) -> None:
    saved = State()
    saved.value = torch.arange(4)
    saved.shared = saved.layer.weight.detach()
    saved.same = saved.value
    sec.save(tmp_path / "a.safetensors", saved)
    again = sec.load(tmp_path / "a.safetensors", model=State())
    assert torch.equal(again.value, torch.arange(4))
    assert again.same is again.value
    assert torch.equal(again.shared, saved.layer.weight)
    assert "shared" not in dict(again.named_parameters())


def test_devices_stay_those_of_the_network(tmp_path: Path) -> None:
    sec.save(tmp_path / "a.safetensors", State(torch.device("cuda", 3)))
    again = sec.load(tmp_path / "a.safetensors", model=State(torch.device("cpu")))
    assert again.value == torch.device("cpu")


def test_other_objects_are_left_alone(tmp_path: Path) -> None:
    saved = State({"a": "one"})
    saved.made_later = {1, 2}
    sec.save(tmp_path / "a.safetensors", saved)
    assert sec.load(tmp_path / "a.safetensors", model=State({"a": "two"})).value == {"a": "two"}


def test_only_what_differs_from_the_builder_is_written(tmp_path: Path) -> None:
    network = sec.build("secateur:digits")
    network.note = (1, 2)
    network.features[0].dilation = (1, 1)
    sec.save(tmp_path / "a.safetensors", network, builder="secateur:digits")
    assert read_metadata(tmp_path / "a.safetensors").attributes == {"": {"note": {"tuple": [1, 2]}}}
    assert sec.load(tmp_path / "a.safetensors").note == (1, 2)


def test_what_cannot_be_loaded_is_not_saved(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    network = sec.build("secateur:digits")
    network.add_module("extra", nn.ReLU())
    with pytest.raises(CheckpointError, match="builds no network .* it has no module 'extra'"):
        sec.save(path, network, builder="secateur:digits")
    with pytest.raises(CheckpointError, match="ReLU has no parameters and no buffers"):
        sec.save(path, nn.ReLU())
    with pytest.raises(CheckpointError, match=r"value is on the meta device and has no values"):
        sec.save(path, State(torch.zeros(2, device="meta")))
    with pytest.raises(CheckpointError, match=r"value is sparse_coo, and only dense tensors"):
        sec.save(path, State(torch.eye(2).to_sparse()))
    assert not path.exists()


def test_compiled_parts_have_the_names_of_plain_ones(tmp_path: Path) -> None:
    def network(compiled: bool) -> nn.Module:
        inner = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16))
        return nn.Sequential(
            torch.compile(inner, backend="eager") if compiled else inner, nn.ReLU(), nn.Linear(16, 3)
        ).eval()

    x = torch.randn(4, 6)
    for saved in (network(compiled=True), network(compiled=False)):
        sec.save(tmp_path / "a.safetensors", saved)
        plain = saved if not hasattr(saved[0], "_orig_mod") else nn.Sequential(saved[0]._orig_mod, *saved[1:])
        for compiled in (True, False):
            again = sec.load(tmp_path / "a.safetensors", model=network(compiled))
            inner = again[0]._orig_mod if compiled else again[0]
            assert torch.equal(nn.Sequential(inner, *again[1:])(x), plain(x))


def test_recurrent_layers_read_the_weights_that_were_loaded(tmp_path: Path) -> None:
    saved, x = nn.LSTM(4, 6).eval(), torch.randn(5, 2, 4)
    sec.save(tmp_path / "a.safetensors", saved)
    again = sec.load(tmp_path / "a.safetensors", model=nn.LSTM(4, 6))
    assert torch.equal(again(x)[0], saved(x)[0])
    twin = copy.deepcopy(again)
    assert torch.equal(twin(x)[0], saved(x)[0])


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda items: st.lists(items, max_size=3) | st.lists(items, max_size=3).map(tuple),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(PLAIN)
def test_encoding_is_reversible(value: Any) -> None:
    if is_plain(value):
        assert decoded(encoded(value)) == value
        assert repr(decoded(encoded(value))) == repr(value)


def test_lists_of_the_first_format_take_the_form_of_the_network(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    sec.save(path, State((1, 2)))
    stored = load_file(path)
    with safe_open(path, "pt") as file:
        data = json.loads(without_checksum(file.metadata()))
    data |= {"format": 1, "attributes": {"": {"value": [3, 4]}}}
    save_file(stored, path, metadata=with_checksum(json.dumps(data), stored))
    assert sec.load(path, model=State((1, 2))).value == (3, 4)
    assert sec.load(path, model=State([1, 2])).value == [3, 4]


@pytest.mark.parametrize("data", [{}, {"tuple": [1], "x": 1}, {"dtype": "Tensor"}, {"size": [1.5]}, 2**63])
def test_data_of_another_form_are_refused(data: Any) -> None:
    with pytest.raises(ValueError, match="unknown form"):
        decoded(data)
