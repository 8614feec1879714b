"""Compare rules of operators with answers that do not come from the engine.

Rules of other operators are tested by networks of common layers (``networks.py``, ``random_networks.py``).

Where channels only meet in weights that contract over them, the answer is the original with the columns of
the removed channels zeroed. Where an operator takes a statistic over channels, it is the same network built
by hand of the kept channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import secateur as sec
from secateur.graph.capture.composites import COMPOSITES
from secateur.graph.channel_graph import Keep
from secateur.graph.checking.compare import largest_difference
from secateur.graph.costing import module_macs
from secateur.graph.rules import find_rule
from tests.graph.operator_networks import (
    CONTRACTED,
    FROZEN,
    STATISTICS,
    WORDS,
    Conv1D,
    Net,
    lines,
    parameter,
    quantised,
)
from tests.graph.outputs import evaluate
from tests.graph.random_networks import Recipe, Step, build
from tests.graph.test_silent_errors import zeroed
from tests.graph.test_traps import in_rounds, scattered


def double(model: nn.Module) -> nn.Module:
    """In float64, complex weights as they are."""
    for module in model.modules():
        for name, item in module._parameters.items():
            if item is not None and not item.is_complex():
                module._parameters[name] = nn.Parameter(item.detach().double())
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                module._buffers[name] = buffer.double()
    return model.eval()


@pytest.fixture(autouse=True)
def _seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("name", CONTRACTED)
def test_channels_go_on_through(name: str) -> None:
    make, shape, groups = CONTRACTED[name]
    in_rounds(double(make()), torch.randn(shape, dtype=torch.float64), groups)


@pytest.mark.parametrize("name", CONTRACTED)
def test_modules_add_up_to_the_network(name: str) -> None:
    make, shape, _ = CONTRACTED[name]
    graph = sec.trace(double(make()), torch.randn(shape, dtype=torch.float64))
    half = graph.after(Keep({group.name: range(group.channels // 2) for group in graph.prunable}))
    assert [sum(module_macs(item).values()) for item in (graph, half)] == [
        item.cost().macs for item in (graph, half)
    ]


@pytest.mark.parametrize("name", STATISTICS)
def test_a_statistic_is_of_the_kept_channels(name: str) -> None:
    between, shape = STATISTICS[name]
    model, x = double(lines(between)()), torch.randn(shape, dtype=torch.float64)
    graph = sec.trace(model, x)
    assert [(group.name, group.channels) for group in graph.prunable] == [("a", 8)]
    kept = [0, 1, 3, 6, 7]
    plan = sec.PruningPlan(graph, {"a": kept})
    small = sec.apply_plan(model, plan)
    with torch.no_grad():
        y = torch.tanh(F.linear(x, model.a.weight[kept], model.a.bias[kept]))
        wanted = F.linear(between(y), model.b.weight[:, kept], model.b.bias)
        torch.testing.assert_close(small(x), wanted, rtol=1e-10, atol=1e-10)
    assert sec.verify(model, small, plan, x, tolerance=1e-9).ok


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_cost_what_pytorch_counts(name: str) -> None:
    between, shape = STATISTICS[name]
    model, x = lines(between)().eval(), torch.randn(shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    assert sec.cost(model, x).macs * 2 * len(x) == counter.get_total_flops()


def test_weights_that_are_no_parameters_cost_what_pytorch_counts() -> None:
    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.held = nn.Linear(3, 8), [torch.randn(5, 8)]

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.first(x), self.held[0])

    model, x = Held().eval(), torch.randn(2, 3)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    assert sec.cost(model, x).macs * 2 * len(x) == counter.get_total_flops()


@pytest.mark.parametrize("name", FROZEN)
def test_what_cannot_be_followed_says_why(name: str) -> None:
    make, shape, reason = FROZEN[name]
    graph = sec.trace(double(make()), torch.randn(shape, dtype=torch.float64))
    assert "a" not in [group.name for group in graph.prunable]
    matched = [group for group in graph.frozen if group.name.startswith("a")]
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError("; ".join(str(group.reason) for group in matched))


def test_every_operator_that_pytorch_calls_element_wise_has_a_rule() -> None:
    found = []
    for name in dir(torch.ops.aten):
        overloads = getattr(getattr(torch.ops.aten, name), "overloads", list)
        forms = [getattr(getattr(torch.ops.aten, name), item) for item in overloads()]
        if any(torch.Tag.pointwise in form.tags for form in forms) and name != "equal":  # one bool for all
            found.append(name)
    assert len(found) > 200
    missing = [name for name in found if find_rule(f"aten.{name}.default") is None and name not in COMPOSITES]
    assert [name for name in missing if not name.endswith("_backward")] == []


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_words_lose_columns(mode: str) -> None:
    model = Net(lambda s, x: s.b(s.e(x)), e=nn.EmbeddingBag(20, 8, mode=mode), b=nn.Linear(8, 3))
    small = in_rounds(double(model), torch.randint(0, 20, WORDS), {"e": 8})
    assert small.e.embedding_dim == small.b.in_features < 8


@pytest.mark.parametrize(
    "noise",
    [
        lambda y: y + torch.empty_like(y).uniform_(-1, 1),
        lambda y: y + torch.empty_like(y).normal_(),
        F.gumbel_softmax,
    ],
)
def test_noise_for_each_channel_is_lost_with_it(noise: Any) -> None:
    model, x = double(lines(noise)()), torch.randn(5, 6, dtype=torch.float64)
    graph = sec.trace(model, x)
    plan = sec.plan_from(graph, {"a": [0, 3]})
    small = sec.apply_plan(model, plan)
    assert sec.verify(model, small, plan, x).ok
    assert small.b.in_features == 6


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layer", [nn.Embedding, nn.EmbeddingBag])
def test_words_of_limited_norm_lose_columns(
    layer: type[nn.Module], dtype: torch.dtype, training: bool
) -> None:
    table = layer(20, 8, max_norm=1.0)
    look_up = F.embedding if layer is nn.Embedding else F.embedding_bag
    limited = [  # as the layer does it, and as a call of the function does
        Net(lambda s, x: s.b(s.e(x)), e=table, b=nn.Linear(8, 3)),
        Net(lambda s, x: s.b(look_up(x, s.e.weight, max_norm=1.0)), e=layer(20, 8), b=nn.Linear(8, 3)),
    ]
    words = torch.randint(0, 20, WORDS)
    for model in limited:
        model.to(dtype).train(training)
        before = model.e.weight.detach().clone()
        graph = sec.trace(model, words)
        kept = [0, 2, 3, 7]
        plan = sec.PruningPlan(graph, {"e": kept})
        small = sec.apply_plan(model, plan)
        assert sec.verify(model, small, plan, words).ok
        assert torch.equal(model.e.weight, before)
        with torch.no_grad():
            rows = look_up(words, before[:, kept].clone(), max_norm=1.0)
            wanted = F.linear(rows, model.b.weight[:, kept], model.b.bias)
            torch.testing.assert_close(small(words), wanted)


def test_transposed_weights_have_roles_readers_and_attributes() -> None:
    model, x = nn.Sequential(Conv1D(8, 6), nn.GELU(), Conv1D(3, 8)).eval(), torch.randn(3, 4, 6)
    graph = sec.trace(model, x)
    roles = [(member.tensor, member.dim, member.role.value) for member in graph["0"].members]
    assert roles == [("0.weight", 1, "producer"), ("0.bias", 0, "carrier"), ("2.weight", 0, "consumer")]
    assert [(reader.module, reader.tensor) for reader in graph.readers] == [("2", "2.weight")]
    small = sec.apply_plan(model, sec.plan_from(graph, {"0": [1, 2, 6]}))
    assert (small[0].nf, small[2].nx) == (5, 5)


@pytest.mark.parametrize(
    "name", ["transposed weights", "stacks of weights", "gru cell", "lstm cell", "plain cell"]
)
def test_products_cost_what_pytorch_counts(name: str) -> None:
    make, shape, _ = CONTRACTED[name]
    model, x = make().eval(), torch.randn(shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    assert sec.cost(model, x).macs * 2 * len(x) == counter.get_total_flops()


def test_prototypes_lose_the_channels_that_distances_are_over() -> None:
    def function(s: nn.Module, x: Tensor) -> Tensor:
        y = s.a(x).tanh()
        return torch.cdist(y, s.p) + F.cosine_similarity(y[:, None], s.p[None], dim=-1)

    model = double(Net(function, a=nn.Linear(6, 8), p=parameter(4, 8)))
    x = torch.randn(5, 6, dtype=torch.float64)
    graph = sec.trace(model, x)
    kept = [1, 2, 6]
    small = sec.apply_plan(model, sec.PruningPlan(graph, {"a": kept}))
    wanted = copy.deepcopy(model)
    wanted.a.weight, wanted.a.bias = (nn.Parameter(item[kept]) for item in (model.a.weight, model.a.bias))
    wanted.p = nn.Parameter(model.p[:, kept])
    torch.testing.assert_close(small(x), wanted(x), rtol=1e-10, atol=1e-10)


def written_out(s: nn.Module, y: Tensor) -> Tensor:
    return y.pow(2).sum(1, keepdim=True) - 2 * y @ s.p.t() + s.p.pow(2).sum(1)


def with_bias(s: nn.Module, y: Tensor) -> Tensor:
    return torch.addmm(y.square().sum(1)[:, None] + (s.p * s.p).sum(-1).view(1, -1), y, s.p.t(), alpha=-2.0)


@pytest.mark.parametrize("distances", [written_out, with_bias])
def test_squared_distances_that_are_written_out(distances: Callable[[nn.Module, Tensor], Tensor]) -> None:
    def function(s: nn.Module, x: Tensor) -> Tensor:
        return distances(s, s.a(x).tanh())

    torch.manual_seed(0)
    model = double(Net(function, a=nn.Linear(6, 8), p=parameter(4, 8)))
    x, kept = torch.randn(5, 6, dtype=torch.float64), [1, 2, 6]
    graph = sec.trace(model, x)
    plan = sec.PruningPlan(graph, {"a": kept})
    small = sec.apply_plan(model, plan)
    assert sec.verify(model, small, plan, x).ok
    y = model.a(x).tanh()[:, kept]
    torch.testing.assert_close(small(x), torch.cdist(y, model.p[:, kept]) ** 2, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "function",
    [
        lambda s, x: s.a(x).tanh() @ (s.p * s.p.pow(2).sum(1, keepdim=True).rsqrt()).t(),
        lambda s, x: (s.a(x).tanh() @ s.p.t()) * s.p.pow(2).sum(1).rsqrt(),
        lambda s, x: (s.a(x).tanh() @ s.p.t()) + s.p.pow(2).sum(1).sqrt(),
        lambda s, x: (s.a(x).tanh() @ s.p.t()) + (s.p + 1).sum(1),
        lambda s, x: (s.a(x).tanh() @ s.p.t()) + s.p.pow(2).mean(1),
    ],
)
def test_other_sums_over_a_weight_freeze_its_columns(function: Callable[..., Tensor]) -> None:
    model = Net(function, a=nn.Linear(6, 8), p=parameter(4, 8))
    reason = sec.trace(model, torch.randn(5, 6))["a"].reason
    assert reason is not None
    assert "a weight is computed with a statistic over these channels" in reason


def test_rounded_numbers_follow_their_channels() -> None:
    steps, zeros = torch.rand(8) * 0.1 + 0.02, torch.arange(8, dtype=torch.int32) - 4
    model = Net(quantised, a=nn.Linear(6, 8), b=nn.Linear(8, 3), steps=steps, zeros=zeros).eval()
    x = torch.randn(5, 6)
    graph = sec.trace(model, x)
    assert [(group.name, group.channels) for group in graph.prunable] == [("a", 8)]
    plan = scattered(graph, 0)
    small = sec.apply_plan(model, plan)
    silent = zeroed(model, graph, {name: list(kept) for name, kept in plan.keep.items()})
    assert largest_difference(evaluate(silent, x), evaluate(small, x)) < 1e-5
    assert len(small.steps) == len(small.zeros) == len(plan.keep["a"])


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:Please use quant_min")
def test_networks_prepared_for_quantisation_are_free_once_observers_are_off() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.Flatten(), nn.Linear(24, 4)
    ).train()
    net.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    torch.ao.quantization.prepare_qat(net, inplace=True)
    x = torch.randn(2, 3, 4, 4)
    net(x)
    frozen = sec.trace(net.eval(), x)
    assert not frozen.prunable
    assert "torch.ao.quantization.disable_observer" in str(frozen["0"].reason)
    net.apply(torch.ao.quantization.disable_observer)
    graph = sec.trace(net, x)
    assert {group.name: group.channels for group in graph.prunable} == {"0": 8, "2": 6}
    plan = scattered(graph, 0)
    small = sec.apply_plan(net, plan)
    silent = zeroed(net, graph, {name: list(kept) for name, kept in plan.keep.items()})
    assert largest_difference(evaluate(silent, x), evaluate(small, x)) < 1e-5
    assert len(small[0].weight_fake_quant.scale) == small[0].out_channels == len(plan.keep["0"])


FORMS = {
    "backwards": 8,
    "scores": 7,
    "pair": 1,
    "cell": 8,
    "spectrum": 5,
    "messages": 10,
    "in order": 8,
    "sampled": 4,
    "pointwise": 8,
    "of all": 12,
    "words": 3,
    "rounded": 2,
    "composed": 9,
    "covariance": 2,
}
"""How many forms of the blocks of the random networks leave all channels free; further ones freeze some."""


def check_forms(kind: str, ways: range) -> None:
    for way in ways:
        model, x = build(Recipe(1 + way % 3, (Step(kind, 0, way),), seed=3))
        graph = sec.trace(model, x)
        assert {group.name for group in graph.frozen} == {"head.one"}, (way, graph.frozen)
        assert "stem" in {group.name for group in graph.prunable}


@pytest.mark.parametrize("kind", FORMS)
def test_some_forms_of_a_block_leave_its_channels_free(kind: str) -> None:
    check_forms(kind, range(0, FORMS[kind], 3))


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMS)
def test_every_form_of_a_block_leaves_its_channels_free(kind: str) -> None:
    check_forms(kind, range(FORMS[kind]))


def test_a_set_of_filters_for_each_channel() -> None:
    """A wavelet transform: four filters are repeated for each channel."""

    def function(s: nn.Module, x: Tensor) -> Tensor:
        y = s.a(x).tanh()
        filters = s.filters.repeat(y.shape[1], 1, 1, 1)
        return s.b(F.conv2d(y, filters, stride=2, groups=y.shape[1]))

    torch.manual_seed(0)
    parts = {"a": nn.Conv2d(3, 5, 1), "b": nn.Conv2d(20, 4, 1), "filters": torch.randn(4, 1, 2, 2)}
    model, x = Net(function, **parts).eval(), torch.randn(2, 3, 6, 6)
    graph = sec.trace(model, x)
    assert [group.name for group in graph.prunable] == ["a"]
    plan = sec.plan_from(graph, {"a": [1, 3]})
    small = sec.apply_plan(model, plan)
    assert small.filters.shape == (4, 1, 2, 2)
    assert sec.verify(model, small, plan, x).ok
    with torch.no_grad():
        model.b.weight.unflatten(1, (5, 4))[:, [1, 3]] = 0
    torch.testing.assert_close(small(x), model(x))
