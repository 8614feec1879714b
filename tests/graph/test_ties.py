"""Tensors that share memory without being one object: a cut keeps what they share."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sec
from secateur.graph.cutting.tensors import named_tensors
from secateur.graph.cutting.ties import Tie, storage_ties

X = torch.randn(4, 6)


class Transposed(nn.Module):
    """An autoencoder whose decoder has the transposed weight of its encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 16), nn.Linear(16, 6)
        self.decoder.weight = nn.Parameter(self.encoder.weight.t())

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(torch.relu(self.encoder(x)))


class Gated(nn.Module):
    """A buffer that is a weight of a layer."""

    def __init__(self, *, read: bool) -> None:
        super().__init__()
        self.first, self.last, self.read = nn.Linear(6, 16), nn.Linear(16, 4), read
        self.register_buffer("weight", self.first.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        return self.last(hidden * torch.sigmoid(F.linear(x, self.weight)) if self.read else hidden)


class Window(nn.Module):
    """A buffer that is a part of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 4)
        self.register_buffer("part", self.first.weight.detach()[2:5])

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)))


class Flat(nn.Module):
    """Weights that lie in one storage, one after the other or in columns of it, without common elements."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 4)
        memory = torch.randn(16, 10)
        self.first.weight = nn.Parameter(memory[:, :6])
        self.last.weight = nn.Parameter(memory[:, 6:].t())

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)))


NETS = {
    "transposed": (Transposed, "encoder"),
    "buffer": (lambda: Gated(read=True), "first"),
    "unread": (lambda: Gated(read=False), "first"),
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_what_shares_memory_still_does_after_a_cut(name: str, inplace: bool) -> None:
    torch.manual_seed(0)
    make, layer = NETS[name]
    net = make()
    graph = sec.trace(net, X)
    plan = sec.plan_from(graph, {layer: [0, 3]})
    ties = storage_ties(named_tensors(net))
    assert len(ties) == 1
    original = sec.verification.Expectation.of(net, plan, X)
    whole = copy.deepcopy(net)
    small = sec.apply_plan(net, plan, inplace=inplace)
    assert storage_ties(named_tensors(small)) == ties
    check = original.check(small)
    assert check.ok, check
    assert not check.not_checked
    if not inplace:
        assert storage_ties(named_tensors(net)) == ties
        assert sec.verify(net, small, plan, X).ok
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    small(X).square().mean().backward()
    optimizer.step()
    assert storage_ties(named_tensors(small)) == ties
    # The one step of both weights of the whole network, tied again by hand, gives the same numbers.
    if name == "transposed":
        whole.decoder.weight = nn.Parameter(whole.encoder.weight.t())
        with torch.no_grad():
            whole.encoder.weight[[0, 3]], whole.encoder.bias[[0, 3]] = 0, 0
        optimizer = torch.optim.SGD(whole.parameters(), 0.1)
        whole(X).square().mean().backward()
        optimizer.step()
        kept = [row for row in range(16) if row not in (0, 3)]
        torch.testing.assert_close(small.encoder.weight, whole.encoder.weight[kept])


def test_a_cut_in_place_can_be_undone() -> None:
    net = Transposed()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    ties = storage_ties(named_tensors(net))
    operation = sec.surgery.operate(net, sec.plan_from(sec.trace(net, X), {"encoder": [0]}), inplace=True)
    operation.undo()
    assert storage_ties(named_tensors(net)) == ties
    assert all(torch.equal(found, before[name]) for name, found in net.state_dict().items())


def test_a_loaded_network_shares_memory_again(tmp_path: Path) -> None:
    net = Transposed()
    small = sec.apply_plan(net, sec.plan_from(sec.trace(net, X), {"encoder": [0]}))
    sec.save(tmp_path / "net.safetensors", small)
    loaded = sec.load(tmp_path / "net.safetensors", model=Transposed())
    assert storage_ties(named_tensors(loaded)) == storage_ties(named_tensors(small)) != ()
    torch.testing.assert_close(loaded(X), small(X))


def test_a_check_says_that_memory_is_no_longer_shared() -> None:
    net = Transposed()
    plan = sec.plan_from(sec.trace(net, X), {"encoder": [0]})
    apart = copy.deepcopy(sec.apply_plan(net, plan))
    check = sec.verify(net, apart, plan, X)
    assert check.ok
    assert any("'encoder.weight' and 'decoder.weight'" in item for item in check.not_checked)


def test_what_shares_a_part_of_its_memory_is_frozen() -> None:
    reason = sec.trace(Window(), X)["first"].reason
    assert reason is not None
    assert "'part' shares memory with 'first.weight'" in reason


def test_one_storage_without_common_elements_freezes_nothing() -> None:
    net = Flat()
    assert storage_ties(named_tensors(net)) == ()
    assert sec.trace(net, X)["first"].reason is None


def test_pairs_are_found_by_their_elements() -> None:
    base = torch.randn(2, 3, 4)
    tensors = {"a": base, "b": base.permute(2, 0, 1), "c": base[:, 1:], "d": base.clone(), "e": base.double()}
    assert storage_ties(tensors) == (Tie("a", "b", (2, 0, 1)), Tie("a", "c", None))
