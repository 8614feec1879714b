from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sec

KINDS: dict[str, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    "lstm": (nn.LSTM, {"batch_first": True}),
    "lstm, two layers, both directions": (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    "lstm without biases": (nn.LSTM, {"bias": False}),
    "gru": (nn.GRU, {}),
    "gru, two layers, dropout": (nn.GRU, {"num_layers": 2, "dropout": 0.3, "batch_first": True}),
    "rnn": (nn.RNN, {"nonlinearity": "relu", "bidirectional": True}),
}


class Tagger(nn.Module):
    """Words in, a class for each step out."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        cell, options = KINDS[kind]
        self.words = nn.Embedding(20, 6)
        self.inner = nn.Linear(6, 5)
        self.recurrent = cell(5, 8, **options)
        self.head = nn.Linear(16 if self.recurrent.bidirectional else 8, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.recurrent(self.inner(self.words(words)).tanh())[0])


class Summary(nn.Module):
    """The last states go on, of both layers."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(4, 6, num_layers=2)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[1])


@pytest.fixture(params=KINDS)
def net(request: pytest.FixtureRequest) -> Tagger:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tagger(request.param).eval()


@pytest.fixture
def words() -> Tensor:
    return torch.randint(0, 20, (3, 7), generator=torch.Generator().manual_seed(1))


def masked(net: Tagger, hidden: list[int], inner: list[int]) -> Tagger:
    """The network with nothing reading these units: columns set to zero by hand."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        for name, weight in net.recurrent.named_parameters():
            if name.startswith("weight_hh"):
                weight[:, hidden] = 0
            elif name.startswith("weight_ih_l0"):
                weight[:, inner] = 0
            elif name.startswith("weight_ih"):
                columns = hidden + [8 + unit for unit in hidden] * net.recurrent.bidirectional
                weight[:, columns] = 0
        columns = hidden + [8 + unit for unit in hidden] * net.recurrent.bidirectional
        net.head.weight[:, columns] = 0
    return net


@pytest.mark.parametrize("inplace", [False, True])
def test_hidden_units_go_out_of_every_gate_layer_and_direction(
    net: Tagger, words: Tensor, inplace: bool
) -> None:
    graph = sec.trace(net, words)
    assert {group.name: group.channels for group in graph.prunable} == {
        "words": 6,
        "inner": 5,
        "recurrent": 8,
    }
    plan = sec.plan_from(graph, {"recurrent": [1, 4, 6], "inner": [0, 3]})
    with torch.no_grad():
        expected, full = masked(net, [1, 4, 6], [0, 3])(words), net(words)
    small = sec.apply_plan(net, plan, inplace=inplace)
    assert (small.recurrent.hidden_size, small.recurrent.input_size) == (5, 3)
    assert torch.allclose(small(words), expected, atol=1e-6)
    assert not torch.allclose(full, expected, atol=1e-3)
    assert sec.cost(small, words) == plan.cost_after
    small.train()(words).square().sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_states_that_go_on_are_cut_in_all_layers() -> None:
    net, x = Summary().eval(), torch.randn(5, 2, 4)
    graph = sec.trace(net, x)
    plan = sec.plan_from(graph, {"recurrent": [0, 2]})
    small = sec.apply_plan(net, plan)
    assert sec.verify(net, small, plan, x).ok
    assert small.head.in_features == small.recurrent.hidden_size == 4


def test_projected_outputs_are_left_alone_with_a_reason() -> None:
    net, x = nn.Sequential(nn.Linear(4, 6), nn.LSTM(6, 8, proj_size=3)).eval(), torch.randn(5, 2, 4)
    graph = sec.trace(net, x)
    assert not graph.prunable
    assert "recurrent layers" in str(graph["0"].reason)


def test_tracing_leaves_the_list_of_weights_as_it_was() -> None:
    net = nn.LSTM(4, 3)
    before = [id(weight) for weight in net._flat_weights]
    sec.trace(net, torch.randn(5, 2, 4))
    assert [id(weight) for weight in net._flat_weights] == before
