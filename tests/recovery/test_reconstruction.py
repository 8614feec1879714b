"""Reconstruction compared with dense least squares on tensors that plain PyTorch computed."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.errors import UsageError
from secateur.graph import trace
from secateur.plan import PruningPlan
from secateur.recovery import LeastSquares, reconstruct
from secateur.surgery import apply_plan

Answer = tuple[Tensor, Tensor]


def lstsq(x: Tensor, y: Tensor) -> Answer:
    """Weights (O, U) and constants (O,) of dense least squares, rows of patches and responses."""
    ones = torch.ones(len(x), 1, dtype=x.dtype)
    solution = torch.linalg.lstsq(torch.cat([x, ones], 1), y, driver="gelsd").solution
    return solution[:-1].T, solution[-1]


def rows(response: Tensor) -> Tensor:
    """Channels last, one row per position."""
    return response.transpose(0, 1).flatten(1).T


def patches(x: Tensor, layer: nn.Conv2d) -> Tensor:
    unfolded = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return unfolded.transpose(1, 2).flatten(0, 1)


def cut(net: nn.Module, x: Tensor, keep: dict[str, list[int]]) -> tuple[nn.Module, PruningPlan]:
    plan = PruningPlan(trace(net, x[:2]), {name: tuple(kept) for name, kept in keep.items()})
    return apply_plan(net, plan), plan


@pytest.mark.parametrize(
    "options",
    [{}, {"padding": 1, "stride": 2}, {"dilation": 2, "padding": 2}, {"stride": (2, 1), "padding": (0, 1)}],
)
def test_a_convolution_answers_like_dense_least_squares(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, **options)).double().eval()
    x = torch.randn(30, 3, 9, 9, dtype=torch.float64)
    small, plan = cut(net, x, {"0": [0, 2, 5]})
    with torch.no_grad():
        read, wanted = small[1](small[0](x)), net(x)
    weight, bias = lstsq(patches(read, small[2]), rows(wanted))
    fit = reconstruct(net, small, plan, x.split(7), LeastSquares(ridge=0.0))[0]
    assert torch.allclose(small[2].weight.flatten(1), weight, atol=1e-6)
    assert torch.allclose(small[2].bias, bias, atol=1e-6)
    left = (small(x) - wanted).square().sum() / (wanted - wanted.mean((0, 2, 3), keepdim=True)).square().sum()
    assert fit.error == pytest.approx(float(left.detach()), rel=1e-6)


def test_a_grouped_convolution_is_fitted_group_by_group() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 12, 1), nn.Sigmoid(), nn.Conv2d(12, 8, 3, groups=2), nn.Conv2d(8, 2, 1))
    net = net.double().eval()
    x = torch.randn(40, 3, 6, 6, dtype=torch.float64)
    graph = trace(net, x[:2])
    name = graph.prunable[0].name
    small, plan = cut(net, x, {name: [0, 3, 4]})
    with torch.no_grad():
        read, wanted = small[1](small[0](x)), net[2](net[1](net[0](x)))
    reconstruct(net, small, plan, [x], LeastSquares(ridge=0.0), refit_downstream=False)
    assert read.shape[1] == 6
    for group in range(2):
        inputs, outputs = slice(group * 3, group * 3 + 3), slice(group * 4, group * 4 + 4)
        patched = F.unfold(read[:, inputs], 3).transpose(1, 2).flatten(0, 1)
        weight, bias = lstsq(patched, rows(wanted[:, outputs]))
        assert torch.allclose(small[2].weight[outputs].flatten(1), weight, atol=1e-6)
        assert torch.allclose(small[2].bias[outputs], bias, atol=1e-6)


def test_a_linear_layer_after_flatten() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5)).double().eval()
    x = torch.randn(200, 3, 4, 4, dtype=torch.float64)
    small, plan = cut(net, x, {"0": [1, 2, 4]})
    with torch.no_grad():
        weight, bias = lstsq(small[:3](x), net(x))
    reconstruct(net, small, plan, [x], LeastSquares(ridge=0.0))
    assert torch.allclose(small[3].weight, weight, atol=1e-6)
    assert torch.allclose(small[3].bias, bias, atol=1e-6)


def test_fewer_examples_than_unknowns_move_the_weights_as_little_as_needed() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3)).double().eval()
    x = torch.randn(9, 6, dtype=torch.float64)
    small, plan = cut(net, x, {"0": list(range(30))})
    old = small[2].weight.detach().clone()
    with torch.no_grad():
        read, wanted = small[:2](x), net(x)
    reconstruct(net, small, plan, [x], LeastSquares(ridge=1e-9))
    read, mean = read - read.mean(0), wanted.mean(0)
    least = old + (torch.linalg.pinv(read) @ (wanted - mean - read @ old.T)).T
    assert torch.allclose(small[2].weight, least, atol=1e-4)
    assert torch.allclose(small(x), wanted, atol=1e-4)


class TwoReaders(nn.Module):
    """Two convolutions read one group; the second one's input does not depend on the first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.left = nn.Conv2d(6, 4, 3)
        self.right = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu(self.stem(x))
        return self.left(y), self.right(y)


def test_every_reader_of_a_group_is_fitted() -> None:
    torch.manual_seed(0)
    net = TwoReaders().double().eval()
    x = torch.randn(40, 3, 7, 7, dtype=torch.float64)
    small, plan = cut(net, x, {"stem": [0, 1, 5]})
    with torch.no_grad():
        read, wanted = F.relu(small.stem(x)), net(x)
    found = reconstruct(net, small, plan, [x], LeastSquares(ridge=0.0))
    assert [fit.module for fit in found] == ["left", "right"]
    for layer, response in ((small.left, wanted[0]), (small.right, wanted[1])):
        weight, bias = lstsq(patches(read, layer), rows(response))
        assert torch.allclose(layer.weight.flatten(1), weight, atol=1e-6)
        assert torch.allclose(layer.bias, bias, atol=1e-6)


class Block(nn.Module):
    """Two residual branches; convolutions have no bias, batch norms follow."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.a = nn.Conv2d(6, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.b_norm = nn.BatchNorm2d(6)
        self.c = nn.Conv2d(6, 8, 1)
        self.d = nn.Conv2d(8, 6, 1, bias=False)
        self.d_norm = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.b_norm(self.b(F.relu(self.a(x))))
        return x + self.d_norm(self.d(F.relu(self.c(x))))


def block() -> tuple[Block, Tensor]:
    torch.manual_seed(0)
    net = Block().double().eval()
    for norm in (net.b_norm, net.d_norm):
        nn.init.uniform_(norm.weight, 0.5, 2.0)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return net, torch.randn(40, 3, 6, 6, dtype=torch.float64)


def test_the_constant_goes_into_the_batch_norm() -> None:
    net, x = block()
    small, plan = cut(net, x, {"a": [0, 3, 4]})
    mean = small.b_norm.running_mean.clone()
    with torch.no_grad():
        read = F.relu(small.a(small.stem(x)))
        wanted = net.b(F.relu(net.a(net.stem(x))))
    reconstruct(net, small, plan, [x], LeastSquares(ridge=0.0), refit_downstream=False)
    weight, constant = lstsq(patches(read, small.b), rows(wanted))
    assert torch.allclose(small.b.weight.flatten(1), weight, atol=1e-6)
    assert torch.allclose(small.b_norm.running_mean, mean - constant, atol=1e-6)
    assert torch.equal(small.d.weight, net.d.weight)


def test_a_later_branch_makes_up_for_what_the_stream_misses() -> None:
    net, x = block()
    keep = {"a": [0, 3, 4], "c": [1, 2, 5, 7]}
    small, plan = cut(net, x, keep)
    plain = copy.deepcopy(small)
    reconstruct(
        net, plain, plan, [x], LeastSquares(ridge=0.0), refit_downstream=False, correct_shortcut_error=False
    )
    reconstruct(net, small, plan, [x], LeastSquares(ridge=0.0), refit_downstream=False)
    with torch.no_grad():
        expected = net(x)
        stream = small.stem(x) + small.b_norm(small.b(F.relu(small.a(small.stem(x)))))
        read = F.relu(small.c(stream))
        norm = net.d_norm
        deviation = (norm.running_var + norm.eps).sqrt()[:, None, None]
        asked = (expected - stream - norm.bias[:, None, None]) * deviation / norm.weight[:, None, None]
        weight, _ = lstsq(patches(read, small.d), rows(asked))
        alive = read.amax((0, 2, 3)) > 0  # what is always zero may have any weight
        assert torch.allclose(small.d.weight.flatten(1)[:, alive], weight[:, alive], atol=1e-6)
        assert (small(x) - expected).square().sum() < (plain(x) - expected).square().sum()


def test_consumers_behind_the_cut_are_refitted_on_request() -> None:
    net, x = block()
    small, plan = cut(net, x, {"a": [0, 3, 4]})
    found = reconstruct(net, small, plan, [x])
    assert [fit.module for fit in found] == ["b", "c", "d"]
    assert all(fit.error <= fit.error_before + 1e-9 for fit in found)


def test_nothing_else_is_touched() -> None:
    net, x = block()
    net.train()
    small, plan = cut(net, x, {"a": [0, 3, 4]})
    small.train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state, given = torch.get_rng_state(), x.clone()
    reconstruct(net, small, plan, [(x, None)])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, given)
    assert all(module.training for each in (net, small) for module in each.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in small.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in small.parameters())


def test_the_number_of_examples_in_a_chunk_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = block()
    first, plan = cut(net, x, {"a": [0, 3, 4]})
    second, third = copy.deepcopy(first), copy.deepcopy(first)
    reconstruct(net, first, plan, [x[:23]])
    monkeypatch.setattr("secateur.recovery.captured_forward._CHUNK", 5)
    reconstruct(net, second, plan, x[:23].split(7))
    reconstruct(net, third, plan, [x], LeastSquares(max_examples=23))
    for one, other, last in zip(first.parameters(), second.parameters(), third.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-8)
        assert torch.allclose(one, last, atol=1e-8)


def test_a_second_cut_starts_from_the_first() -> None:
    net, x = block()
    once, plan = cut(net, x, {"a": [0, 3, 4, 6, 7]})
    again = PruningPlan(plan.graph.after(plan), {"a": (0, 1, 3), "c": (1, 2, 5)})
    twice = apply_plan(once, again)
    with torch.no_grad():
        read = F.relu(twice.a(twice.stem(x)))
        wanted = once.b(F.relu(once.a(once.stem(x))))
    reconstruct(once, twice, again, [x], LeastSquares(ridge=0.0))
    weight, _ = lstsq(patches(read, twice.b), rows(wanted))
    assert torch.allclose(twice.b.weight.flatten(1), weight, atol=1e-6)


def test_networks_that_do_not_belong_together_are_refused() -> None:
    net, x = block()
    _, plan = cut(net, x, {"a": [0, 3, 4]})
    with pytest.raises(UsageError, match=r"not what the plan leaves: 'a.weight' has shape"):
        reconstruct(net, copy.deepcopy(net), plan, [x])


def test_no_examples_are_refused() -> None:
    net, x = block()
    small, plan = cut(net, x, {"a": [0, 3, 4]})
    with pytest.raises(UsageError, match="no examples"):
        reconstruct(net, small, plan, [])
