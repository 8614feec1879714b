"""Kinds of networks on which a check can be fooled, each with the answer that needs no check."""

from __future__ import annotations

import copy
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import secateur as sec
from secateur.ablation import ablate

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(3))
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(4))


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / one.abs().max())


def dead_channels_change_nothing(model: nn.Module, inputs: Tensor, layer: str, dead: list[int]) -> bool:
    """Cuts channels that are exactly zero, and compares with the original; ``False`` if they are frozen."""
    module = model.get_submodule(layer)
    with torch.no_grad():
        module.weight[dead] = 0
        module.bias[dead] = 0
    graph = sec.trace(model, inputs)
    group = next(group for group in graph.groups if f"{layer}.weight" in {m.tensor for m in group.members})
    if not group.prunable:
        assert group.reason
        return False
    plan = sec.plan_from(graph, {layer: dead})
    small = sec.apply_plan(model, plan)
    assert sec.verify(model, small, plan, inputs).ok
    with torch.no_grad():
        assert relative(model(inputs), small(inputs)) < 1e-5
    return True


class OldNorm(nn.Module):
    def __init__(self, dim: int | None) -> None:
        super().__init__()
        self.a = nn.Linear(6, 16)
        self.b = weight_norm(nn.Linear(16, 12), dim=dim)
        self.c = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu())


def normed(dim: int | None) -> nn.Module:
    inner = parametrizations.weight_norm(nn.Linear(16, 12), dim=dim)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), inner, nn.ReLU(), nn.Linear(12, 3)).eval()


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.*:FutureWarning")
@pytest.mark.parametrize("dim", [0, 1, -1, None])
@pytest.mark.parametrize("form", ["old", "new"])
def test_the_length_of_a_normalised_weight_follows_a_cut(form: str, dim: int | None) -> None:
    model = OldNorm(dim).eval() if form == "old" else normed(dim)
    assert dead_channels_change_nothing(model, X, "a" if form == "old" else "0", [1, 4, 5, 9, 10, 15])


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        mean, std = weight.mean((1, 2, 3), keepdim=True), weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (weight - mean) / (std + 1e-5), self.bias)


class Cosine(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x), F.normalize(self.weight)) * 30


class Binary(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.sign() * self.weight.abs().mean(1, keepdim=True), self.bias)


class Gated(nn.Linear):
    """A weight that also depends on the inputs, minus its mean over what it reads."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * torch.sigmoid(x.sum())
        return F.linear(x, weight - weight.mean(1, keepdim=True), self.bias)


class Softmaxed(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.weight[0].softmax(0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.ReLU(), Standardised(16, 12, 3), nn.Flatten(), nn.Linear(192, 4)
        ),
        lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), Cosine(16, 5)),
        lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), Binary(16, 5)),
        lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), Softmaxed(16, 5)),
        lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), Gated(16, 5)),
        lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), spectral_norm(nn.Linear(16, 5))),
        lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), parametrizations.spectral_norm(nn.Linear(16, 5))),
    ],
    ids=["standardised", "cosine", "binary", "softmax", "gated", "spectral", "spectral parametrised"],
)
def test_statistics_of_weights_are_kept_or_frozen(make: Callable[[], nn.Module]) -> None:
    model = make().eval()
    inputs = IMAGES if isinstance(model[0], nn.Conv2d) else X
    assert not dead_channels_change_nothing(model, inputs, "0", [0, 2, 3, 7, 9, 12, 14])
    assert "weight" in str(sec.trace(model, inputs)["0"].reason)


class TrainingBranch(nn.Module):
    """Deep supervision on the first four channels, in training mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.d = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 4)
        self.h = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        y = self.b(self.a(x).relu()).relu()
        return (self.h(self.d(y)), self.h(y[:, :4])) if self.training else self.h(self.d(y))


class TrainingScale(nn.Module):
    """The same operators in both modes, with another number."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        return self.b(y * (0.5 if self.training else 2.0))


def test_a_slice_in_the_training_branch_is_seen() -> None:
    graph = sec.trace(TrainingBranch(), X)
    assert graph["a"].prunable
    assert not graph["b"].prunable


def test_another_number_in_training_mode_is_compared_with_itself() -> None:
    model = TrainingScale()
    graph = sec.trace(model, X)
    plan = sec.plan_from(graph, {"a": [1, 2]})
    check = sec.verify(model, sec.apply_plan(model, plan), plan, X)
    assert check.ok
    assert check.modes == ("evaluation", "training")


class Root(nn.Module):
    """Divides by the root of a width, which is another number in a cut network."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.box = nn.Linear(6, 16), nn.Linear(16, 5), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        return torch.cat([self.box(x).sigmoid() * 2000, self.b(y / y.shape[-1] ** 0.5) * 0.1], -1)


def test_small_values_beside_large_ones_are_seen() -> None:
    assert not sec.trace(Root(), X)["a"].prunable


class Fixed(Root):
    """What :class:`Root` would be if its divisor did not change."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu() / 4
        return torch.cat([self.box(x).sigmoid() * 2000, self.b(y) * 0.1], -1)


def test_verify_judges_every_column_on_its_own_scale() -> None:
    model = Fixed()
    graph = sec.trace(model, X)
    plan = sec.plan_from(graph, {"a": range(4, 16)})
    small = sec.apply_plan(model, plan)
    assert sec.verify(model, small, plan, X).ok
    with torch.no_grad():
        small.b.weight *= 1.001
    assert not sec.verify(model, small, plan, X).ok


@pytest.mark.parametrize("inputs", [torch.zeros(1, 6), torch.ones(2, 6)], ids=["zeros", "ones"])
def test_constant_inputs_prove_nothing_so_random_ones_are_used(inputs: Tensor) -> None:
    class Unbiased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 16, bias=False), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).relu()
            return self.b(y / y.shape[-1] ** 0.5)

    assert not sec.trace(Unbiased(), inputs)["a"].prunable


def test_tokens_that_are_all_zero_are_replaced_by_random_ones() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.f = nn.Embedding(20, 16), nn.Linear(16, 3)
            self.q, self.k, self.v = nn.Linear(16, 12), nn.Linear(16, 12), nn.Linear(16, 16)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.e(ids)
            a = (self.q(x) @ self.k(x).transpose(1, 2) / math.sqrt(x.shape[-1])).softmax(-1)
            return self.f(x + a @ self.v(x))

    assert not sec.trace(Attention(), torch.zeros(1, 7, dtype=torch.long))["e"].prunable


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_flipped_sign_is_seen_in_every_dtype(dtype: torch.dtype) -> None:
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(128, 2)).eval().to(dtype)
    graph = sec.trace(model, IMAGES.to(dtype))
    plan = sec.plan_from(graph, {"0": range(8)})
    small = sec.apply_plan(model, plan)
    right = sec.verify(model, small, plan, IMAGES.to(dtype))
    assert right.ok
    assert right.tolerance == 1e-8
    with torch.no_grad():
        small[0].weight[0].mul_(-1)
    assert not sec.verify(model, small, plan, IMAGES.to(dtype)).ok


class Upcast(nn.Module):
    """Computes its norm in float32, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)
        self.scale = nn.Parameter(torch.rand(16))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        wide = y.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.b(self.scale * wide.to(y.dtype))


def test_what_the_model_computes_in_float32_is_checked_in_float64_too() -> None:
    model = Upcast().bfloat16()
    graph = sec.trace(model, X.bfloat16())
    plan = sec.plan_from(graph, {"a": [0, 5]})
    check = sec.verify(model, sec.apply_plan(model, plan), plan, X.bfloat16())
    assert check.ok
    assert check.tolerance == 1e-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_code_that_refuses_float64_is_checked_in_its_own_precision(dtype: torch.dtype) -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == dtype
            return self.b(self.a(x).relu())

    model, x = Picky().to(dtype), X.to(dtype)
    graph = sec.trace(model, x)
    plan = sec.plan_from(graph, {"a": [0, 5]})
    small = sec.apply_plan(model, plan)
    check = sec.verify(model, small, plan, x)
    assert check.ok
    assert "own precision" in check.precision
    with torch.no_grad():
        small.b.weight[0, 0] += 1
    assert not sec.verify(model, small, plan, x).ok


class Averages(nn.Module):
    """Keeps a running mean in training mode, wrongly turned or counted, and uses it in evaluation."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b, self.kind = nn.Linear(6, 8), nn.Linear(8, 3), kind
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if not self.training:
            return self.b((y - self.mean).relu())
        mean = y.detach().mean(0)
        if self.kind == "turned":
            mean = torch.cat((mean[4:], mean[:4]))
        if self.kind == "counted":
            mean = mean / len(self.mean) ** 0.5
        if self.kind == "by width" and y.shape[1] > 7:
            mean = mean * 2
        self.mean.lerp_(mean, 0.1)
        return self.b(y.relu())


@pytest.mark.parametrize(
    ("kind", "free"), [("right", True), ("turned", False), ("counted", False), ("by width", False)]
)
def test_buffers_that_training_writes_are_compared(kind: str, free: bool) -> None:
    graph = sec.trace(Averages(kind), X)
    kept = [group for group in graph.prunable if "a.weight" in {m.tensor for m in group.members}]
    assert bool(kept) is free
    if free:
        model, plan = Averages(kind), sec.plan_from(graph, {"a": [0]})
        small = sec.apply_plan(model, plan)
        assert sec.verify(model, small, plan, X).ok


class OnlyBackward(torch.autograd.Function):
    """Hands a value on, and multiplies its gradient by a buffer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: Tensor) -> Tensor:
        ctx.save_for_backward(rate)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.saved_tensors[0], None


def test_what_only_the_backward_pass_reads_is_seen() -> None:
    class Rated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
            self.register_buffer("rate", torch.rand(8))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(OnlyBackward.apply(self.a(x).relu(), self.rate))

    assert not sec.trace(Rated(), X)["a"].prunable


def test_a_coin_of_python_falls_alike_on_both_sides() -> None:
    class Depth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c, self.b = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).relu()
            return self.b(y if self.training and random.random() < 0.5 else y + self.c(y))

    model = Depth()
    graph = sec.trace(model, X)
    plan = sec.plan_from(graph, {"a": [0]})
    small = sec.apply_plan(model, plan)
    for seed in range(4):
        random.seed(seed)
        assert sec.verify(model, small, plan, X).ok


def test_a_counter_that_training_advances_is_followed() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
            self.register_buffer("step", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.step += 1
            return self.b(self.a(x).relu()) * (self.step + 1)

    model = Counts()
    plan = sec.plan_from(sec.trace(model, X), {"a": [0]})
    assert sec.verify(model, sec.apply_plan(model, plan), plan, X).ok
    assert model.step == 0


def test_a_normalised_weight_may_be_cut_twice_along_what_it_reads() -> None:
    up = parametrizations.weight_norm(nn.ConvTranspose1d(8, 6, 4, 2, 1))
    model = nn.Sequential(nn.Conv1d(3, 8, 3), nn.LeakyReLU(), up, nn.LeakyReLU(), nn.Conv1d(6, 2, 3))
    x = torch.randn(2, 3, 12)
    graph = sec.trace(model, x)
    for kept in ([0, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3]):
        plan = sec.PruningPlan(graph, {"0": kept})
        small = sec.apply_plan(model, plan)
        assert sec.verify(model, small, plan, x).ok
        graph, model = graph.after(plan), small


def test_a_deep_network_of_narrow_layers_is_free() -> None:
    layers = [layer for _ in range(24) for layer in (nn.Linear(8, 8), nn.Tanh())]
    graph = sec.trace(nn.Sequential(nn.Linear(6, 8), *layers, nn.Linear(8, 3)), X)
    assert len(graph.prunable) == 25


class Merged(nn.Module):
    """Merges an adapter into a weight when it is put in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.merged = nn.Linear(6, 16), nn.Linear(16, 3), False
        self.low = nn.Parameter(torch.randn(16, 6))

    def train(self, mode: bool = True) -> Merged:
        super().train(mode)
        if mode == self.merged:
            with torch.no_grad():
                self.a.weight.add_(self.low, alpha=-1.0 if mode else 1.0)
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x) if self.merged else self.a(x) + x @ self.low.t()
        return self.b(y.relu())


def test_weights_that_change_with_the_mode_are_refused_and_put_back() -> None:
    model = Merged()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(sec.TraceError, match=r"model.eval\(\) rewrites 'a.weight'"):
        sec.trace(model, X)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert not model.merged


def test_outputs_that_do_not_depend_on_the_inputs_are_not_checked() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu()).softmax(-1)

    graph = sec.trace(Constant(), X)
    assert not graph.prunable
    assert "do not depend on the inputs" in str(graph["a"].reason)


def test_a_stale_attribute_and_a_plain_tensor_are_seen() -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    graph = sec.trace(model, X)
    plan = sec.plan_from(graph, {"0": [0]})
    stale = sec.apply_plan(model, plan)
    stale[2].in_features = 16
    assert not sec.verify(model, stale, plan, X).ok
    plain = sec.apply_plan(model, plan)
    weight = plain[2].weight.detach()
    del plain[2].weight
    plain[2].register_buffer("weight", weight)
    assert "is not a parameter" in str(sec.verify(model, plain, plan, X))


def test_a_constant_output_beside_others_is_named() -> None:
    class Grid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"grid": torch.arange(4.0), "out": self.b(self.a(x).relu())}

    model = Grid()
    graph = sec.trace(model, X)
    plan = sec.plan_from(graph, {"a": [0]})
    check = sec.verify(model, sec.apply_plan(model, plan), plan, X)
    assert check.ok
    assert check.not_checked == ("output['grid'] (does not depend on the inputs)",)


def test_a_constant_output_is_named_where_training_writes_buffers_too() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.n, self.b = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"grid": torch.arange(4.0), "out": self.b(self.n(self.a(x)).relu())}

    model = Normed()
    plan = sec.plan_from(sec.trace(model, X), {"a": [0]})
    check = sec.verify(model, sec.apply_plan(model, plan), plan, X)
    assert check.ok
    assert check.not_checked == ("output['grid'] (does not depend on the inputs)",)


def test_an_output_that_only_dropout_changes_does_not_depend_on_the_inputs() -> None:
    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.narrow, self.wide = nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.wide(self.narrow(x.transpose(1, 2)).relu()).transpose(1, 2)

    class Reader(nn.Module):
        """Reads a place that hears of the inputs only from a residual branch."""

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.start = nn.Linear(6, 5), nn.Parameter(torch.randn(1, 1, 5))
            self.places, self.head, self.drop = Places(), nn.Linear(5, 3), nn.Dropout(0.2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([self.start.expand(len(x), -1, -1), self.embed(x)], 1)
            x = x + self.places(x)
            return self.head(self.drop(x[:, 0]))

    model, words = Reader().eval(), torch.randn(5, 3, 6)
    graph = sec.trace(model, words)
    assert [branch.name for branch in graph.branches if branch.prunable] == ["places"]
    for without, ok in ((["places"], False), ([], True)):
        plan = sec.PruningPlan(graph, {"embed": [0, 2, 4]}, without=without)
        small = sec.apply_plan(model, plan)
        check = sec.verify(model, small, plan, words)
        assert check.ok == ok, check
        assert bool(check.not_checked) != ok
        assert torch.equal(small(words), small(words * 2)) != ok


class Answers(nn.Module):
    """Returns other things beside tensors; they may be changed to see whether it is noticed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)
        self.key, self.count = "scores", 2

    def forward(self, x: Tensor) -> dict[str, object]:
        return {self.key: self.b(self.a(x).relu()), "count": self.count}


@pytest.mark.parametrize(("name", "value"), [("key", "logits"), ("count", 3)])
def test_keys_and_other_values_are_compared(name: str, value: object) -> None:
    model = Answers()
    graph = sec.trace(model, X)
    plan = sec.plan_from(graph, {"a": [0]})
    small = sec.apply_plan(model, plan)
    assert sec.verify(model, small, plan, X).ok
    setattr(small, name, value)
    check = sec.verify(model, small, plan, X)
    assert not check.ok
    assert check.problem


class Noise(nn.Module):
    """Draws random numbers in both modes: of all channels, of one, and as dropout that is always on."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y = y + torch.randn_like(y) + torch.rand(len(y), 1)
        return self.c(F.dropout(self.b(F.dropout(y.relu(), 0.3)).relu(), 0.2, self.training))


def test_random_numbers_do_not_hide_or_feign_a_difference() -> None:
    model = Noise()
    graph = sec.trace(model, X)
    assert [group.name for group in graph.prunable] == ["a", "b"]
    plan = sec.plan_from(graph, {"a": [3, 4], "b": [0]})
    small = sec.apply_plan(model, plan)
    assert sec.verify(model, small, plan, X).ok
    with torch.no_grad():
        small.b.weight[0, 0] += 0.01
    assert not sec.verify(model, small, plan, X).ok


class Drawn(nn.Module):
    """Adds or multiplies with random numbers behind a layer."""

    def __init__(self, draw: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.draw, self.std, self.p = draw, 0.1, 0.4

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c(self.b(self.draw(self, self.a(x).relu())).relu())
        return out


@pytest.mark.parametrize(
    "draw",
    [
        lambda s, y: torch.normal(y, s.std),
        lambda s, y: y + torch.empty_like(y).normal_(0, s.std),
        lambda s, y: y + torch.empty_like(y).uniform_(0, s.std),
        lambda s, y: y + torch.empty_like(y).exponential_(1 / s.std),
        lambda s, y: y * torch.empty_like(y).log_normal_(0, s.std),
        lambda s, y: y + torch.empty_like(y).cauchy_(0, s.std),
    ],
)
def test_the_parameters_of_random_numbers_are_compared(draw: Callable[[nn.Module, Tensor], Tensor]) -> None:
    model = Drawn(draw).eval()
    graph = sec.trace(model, X)
    assert graph["a"].prunable
    plan = sec.plan_from(graph, {"a": [0, 3]})
    small = sec.apply_plan(model, plan)
    assert sec.verify(model, small, plan, X).ok
    small.std = 0.2
    assert not sec.verify(model, small, plan, X).ok


def test_the_mean_of_random_numbers_depends_on_the_channels() -> None:
    """Half of the width in the code, and noise around it: a wrong cut must show."""
    model = Drawn(lambda s, y: torch.normal(y * (8 / y.shape[1]), 0.1)).eval()
    assert not sec.trace(model, X)["a"].prunable


@pytest.mark.parametrize(
    "draw",
    [
        lambda s, y: F.dropout(y, 0.3, s.training) * torch.randint(0, 2, (len(y), 1)),
        lambda s, y: F.dropout(y, 0.3, s.training)[torch.randperm(len(y))],
        lambda s, y: F.dropout(y, 0.3, s.training)[torch.multinomial(torch.ones(len(y)), len(y))],
    ],
)
def test_draws_behind_dropout_are_the_same_at_every_width(
    draw: Callable[[nn.Module, Tensor], Tensor],
) -> None:
    model = Drawn(draw).eval()
    graph = sec.trace(model, X)
    assert graph["a"].prunable
    plan = sec.plan_from(graph, {"a": [0, 3], "b": [1]})
    assert sec.verify(model, sec.apply_plan(model, plan), plan, X).ok


@pytest.mark.parametrize(
    "factor",
    [
        lambda s, y: 8 / s.a.weight.shape[0],
        lambda s, y: y.new_tensor(8 / y.shape[-1]),
        lambda s, y: (8 / s.a.out_features) ** 0.5,
        lambda s, y: 8 / y.size(1),
        lambda s, y: 0.125 * y.shape[1],  # a float times a size does not remember it
        lambda s, y: 2 - y.shape[1] / 8,
    ],
)
def test_a_factor_of_training_that_follows_the_width_is_seen(factor: Callable[..., Any]) -> None:
    model = Drawn(lambda s, y: y * factor(s, y) if s.training else y).eval()
    graph = sec.trace(model, X)
    assert not graph["a"].prunable
    assert graph["b"].prunable
    plan = sec.plan_from(graph, {"b": [1, 2]})
    assert sec.verify(model, sec.apply_plan(model, plan), plan, X).ok


@pytest.mark.parametrize(
    "drop",
    [
        lambda s, y: F.dropout(y, 0.3 * y.shape[1] / 16, s.training),
        lambda s, y: F.dropout(y, 0.9 - 1 / y.shape[1], s.training),
        lambda s, y: F.alpha_dropout(y, 0.2 if y.shape[1] > 6 else 0.1, s.training),
        lambda s, y: F.dropout(y, 0.2, s.training and y.shape[1] > 6),
        lambda s, y: F.dropout(y, 0.2) if s.training and y.shape[1] > 6 else F.dropout(y, 0.2, False),
        lambda s, y: F.batch_norm(y, s.mean, s.var, momentum=0.1 * y.shape[1] / 8, training=s.training),
        lambda s, y: F.batch_norm(y, s.mean, s.var, momentum=1 / y.shape[1], training=s.training),
    ],
)
def test_what_training_alone_computes_from_a_width_is_named(
    drop: Callable[[nn.Module, Tensor], Tensor],
) -> None:
    """In evaluation mode these numbers have no effect, and plain floats do not remember the width."""
    model = Drawn(drop).eval()
    model.register_buffer("mean", torch.zeros(8))
    model.register_buffer("var", torch.ones(8))
    graph = sec.trace(model, X)
    assert re.search(r"training mode, .*(dropout|batch_norm|differ)", graph["a"].reason or "")
    assert graph["b"].prunable
    plan = sec.plan_from(graph, {"b": [1, 2]})
    assert sec.verify(model, sec.apply_plan(model, plan), plan, X).ok


class Assigned(nn.Module):
    """Sets a number of one of its layers from a width, which only training mode reads."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 4)
        self.norm, self.drop, self.way = nn.BatchNorm1d(12), nn.Dropout(0.1), way

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.way == "momentum":
            self.norm.momentum = 1 / h.shape[1]
        if self.way == "p":
            self.drop.p = 0.02 * h.shape[1]
        return self.b(self.drop(self.norm(h)).relu())


@pytest.mark.parametrize("way", ["momentum", "p", "none"])
def test_numbers_of_layers_that_follow_a_width_are_named(way: str) -> None:
    graph = sec.trace(Assigned(way).eval(), torch.randn(4, 6))
    assert graph["a"].prunable is (way == "none")
    assert way == "none" or "with the width" in str(graph["a"].reason)


def test_what_training_computes_from_a_state_or_a_coin_is_no_width() -> None:
    def drop(s: nn.Module, y: Tensor) -> Tensor:
        s.std += 0.1
        return F.dropout(y, min(s.std, 0.9) * random.random(), s.training)  # type: ignore[type-var, operator]

    model = Drawn(drop).eval()
    graph = sec.trace(model, X)
    assert graph["a"].prunable
    plan = sec.plan_from(graph, {"a": [0, 3]})
    assert sec.verify(model, sec.apply_plan(model, plan), plan, X).ok


class Normalised(nn.Module):
    """A dropout before a layer that divides by the scale, kept where nothing else compares it."""

    def __init__(self, form: str, inplace: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.norm = {"layer": nn.LayerNorm(8), "rms": nn.RMSNorm(8)}.get(form)
        self.form, self.dropped, self.inplace = form, [(F.dropout, 0.3)], inplace

    def forward(self, x: Tensor) -> Tensor:
        drop, p = self.dropped[0]
        y = drop(self.a(x).relu() + 0.1, p, self.training, self.inplace)
        y = F.normalize(y, dim=-1) if self.norm is None else self.norm(y)
        out: Tensor = self.c(torch.tanh(self.b(y)))
        return out


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("form", ["layer", "rms", "length"])
def test_a_dropout_before_a_normalisation_is_seen(form: str, inplace: bool) -> None:
    model = Normalised(form, inplace).eval()
    plan = sec.plan_from(sec.trace(model, X), {"a": [0, 3], "b": [1]})
    small = sec.apply_plan(model, plan)
    assert sec.verify(model, small, plan, X).ok
    for other in ((F.dropout, 0.0), (F.dropout, 0.4), (F.alpha_dropout, 0.3), (F.feature_alpha_dropout, 0.3)):
        small.dropped[0] = other
        assert not sec.verify(model, small, plan, X).ok, other


@pytest.mark.parametrize("drop", [nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout])
@pytest.mark.parametrize("inplace", [False, True])
def test_every_kind_of_dropout_is_the_same_function_on_both_sides(
    drop: Callable[[float, bool], nn.Module], inplace: bool
) -> None:
    images = drop is not nn.Dropout1d
    conv = nn.Conv2d if images else nn.Conv1d
    x = torch.randn(3, 2, 4, 4) if images else torch.randn(3, 2, 4)
    between = drop(0.3, inplace), nn.GroupNorm(1, 6), nn.Tanh()
    model = nn.Sequential(conv(2, 6, 1), *between, conv(6, 2, 1)).eval()
    graph = sec.trace(model, x)
    plan = sec.plan_from(graph, {"0": [1, 2]})
    check = sec.verify(model, sec.apply_plan(model, plan), plan, x)
    assert check.ok
    assert "training" in check.modes


@pytest.mark.parametrize("limit", [2, 8, 16])
def test_a_branch_on_a_width_is_seen(limit: int) -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).relu()
            return self.b(y if y.shape[1] >= limit else y * 2)

    group = sec.trace(Branch(), X)["a"]
    assert not group.prunable or group.min_channels == limit == 2


def test_code_that_needs_two_channels_gets_a_least_width() -> None:
    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 12, 3), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.adaptive_avg_pool2d(self.a(x).relu(), 1).squeeze())

    model = Squeezed()
    graph = sec.trace(model, IMAGES)
    assert graph["a"].prunable
    assert graph["a"].min_channels == 2
    with pytest.raises(sec.UsageError, match="at least 2 channels"):
        sec.PruningPlan(graph, {"a": [5]})
    scores = sec.score(model, graph, "magnitude")
    assert len(sec.make_plan(graph, scores, sec.Budget(channels=0.2)).keep["a"]) == 2


# -- left as it was found ------------------------------------------------------------------


class Keeper(nn.Module):
    """Keeps what it can: activations, counts, caches, lists, grids, class attributes."""

    seen = 0

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)
        self.norm = nn.BatchNorm1d(16)
        self.register_buffer("calls", torch.zeros(()))
        self.cache: Tensor | None = None
        self.history: list[Tensor] = []
        self.by_name: dict[str, list[int]] = {"widths": []}
        self.plain = torch.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        type(self).seen += 1
        self.calls.add_(1)
        self.plain += 1
        y = self.norm(self.a(x))
        self.cache = y if self.cache is None else torch.cat([self.cache, y])
        self.last = y
        self.history.append(y)
        self.by_name["widths"].append(y.shape[1])
        return self.b(y.relu() + torch.rand(1) * random.random() * float(np.random.rand()))  # noqa: NPY002


def state_of(model: Keeper) -> object:
    return copy.deepcopy(
        (
            {name: str(value) for name, value in vars(model).items() if not name.startswith("_")},
            {name: value.tolist() for name, value in model.state_dict().items()},
            [module.training for module in model.modules()],
            [len(module._forward_hooks) for module in model.modules()],
            Keeper.seen,
            random.getstate(),
            np.random.get_state()[1].tolist(),  # noqa: NPY002
            torch.get_rng_state().tolist(),
        )
    )


def test_looking_changes_nothing() -> None:
    model = Keeper().train()
    found: dict[str, Tensor] = {}
    model.a.register_forward_hook(lambda module, args, output: found.update(a=output))
    before = str(state_of(model))
    data = [(X, torch.zeros(5, dtype=torch.long))]
    graph = sec.trace(model, X)
    assert str(state_of(model)) == before
    plan = sec.plan_from(graph, {"a": [0, 1]})
    small = sec.apply_plan(model, plan)
    assert str(state_of(model)) == before
    small_before = str(state_of(small))
    assert sec.verify(model, small, plan, X).ok
    assert str(state_of(small)) == small_before
    sec.cost(model, X)
    scores = sec.score(model, graph, "taylor", data, F.cross_entropy)
    sec.width_curves(model, graph, scores, data)
    sec.measure_latency(model, X, min_runs=1, min_seconds=0, warmup=1)
    ablate(model, graph, data, F.cross_entropy)
    assert str(state_of(model)) == before
    assert not found
    copy.deepcopy(model)


def test_a_failed_trace_changes_nothing() -> None:
    class Fails(Keeper):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y * 2 if float(y.sum()) > 0 else y

    model = Fails()
    before = str(state_of(model))
    with pytest.raises(sec.TraceError):
        sec.trace(model, X)
    assert str(state_of(model)) == before


def test_a_layer_that_is_built_in_the_first_pass_is_named_and_not_built() -> None:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.fc, self.o = nn.Conv2d(3, 8, 3), None, nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.c(x).flatten(1)
            if self.fc is None:
                self.fc = nn.Linear(y.shape[1], 12)
            return self.o(self.fc(y))

    model = Lazy()
    with pytest.raises(sec.TraceError, match=r"'fc'.*Call the network once"):
        sec.trace(model, IMAGES)
    assert model.fc is None
    model(IMAGES)
    assert sec.trace(model, IMAGES)["fc"].prunable


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.*:FutureWarning")
@pytest.mark.parametrize("kind", ["masks", "norm"])
def test_layers_with_a_computed_weight_are_free(kind: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 10, 3), nn.Flatten(), nn.Linear(160, 4)
    )
    if kind == "masks":
        prune.l1_unstructured(model[0], "weight", 0.4)
        prune.ln_structured(model[2], "weight", 0.3, n=2, dim=0)
    else:
        weight_norm(model[0])
    graph = sec.trace(model.eval(), IMAGES)
    assert graph["0"].prunable
    assert graph["2"].prunable
    plan = sec.PruningPlan(graph, {"0": [1, 4, 7], "2": [0, 9]})
    assert sec.verify(model, sec.apply_plan(model, plan), plan, IMAGES).ok


def test_a_closure_over_the_model_is_free() -> None:
    class Closure(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)
            self.run = lambda x: self.b(self.a(x).relu())

        def forward(self, x: Tensor) -> Tensor:
            return self.run(x)

    model = Closure()
    graph = sec.trace(model, X)
    plan = sec.plan_from(graph, {"a": [0, 1]})
    assert sec.verify(model, sec.apply_plan(model, plan), plan, X).ok


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_compiled_helpers_do_not_run_on_shapes() -> None:
    @torch.compile
    def gate(x: Tensor, index: Tensor) -> Tensor:
        return (x * x.sigmoid())[index]

    class Compiled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(gate(self.a(x), torch.tensor([0, 2, 1, 1])))

    assert sec.trace(Compiled(), X)["a"].prunable


def test_generated_kernels_end_with_a_reason() -> None:
    class Generated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.r = nn.Parameter(torch.randn(3, 16, 16, 3, 3) * 0.1), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            batch, channels, height, width = x.shape
            mix = self.r(x.mean((2, 3))).sigmoid()
            kernel = torch.einsum("be,eoihw->boihw", mix, self.w).reshape(batch * 16, 16, 3, 3)
            y = F.conv2d(x.reshape(1, batch * channels, height, width), kernel, padding=1, groups=batch)
            return y.reshape(batch, 16, height, width)

    model = nn.Sequential(nn.Conv2d(3, 16, 3), Generated(), nn.ReLU(), nn.Flatten(), nn.Linear(576, 4))
    graph = sec.trace(model, IMAGES)
    for group in graph.prunable:
        plan = sec.PruningPlan(graph, {group.name: range(group.channels // 2)})
        assert sec.verify(model, sec.apply_plan(model, plan), plan, IMAGES).ok
    assert all(group.reason for group in graph.frozen)


class FromConfig(nn.Module):
    """Takes its number of heads from an object that other networks may share."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.config = config
        self.qkv, self.o = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        parts = [part.unflatten(-1, (self.config.heads, -1)) for part in self.qkv(x).chunk(3, -1)]
        q, k, v = (part.transpose(1, 2) for part in parts)
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_a_configuration_that_networks_share_is_not_changed(tmp_path: Path) -> None:
    config, x = SimpleNamespace(heads=4), torch.randn(2, 5, 16)
    student, teacher = FromConfig(config), FromConfig(config)
    with torch.no_grad():
        before = teacher(x)
    graph = sec.trace(student, x)
    plan = sec.PruningPlan(graph, {"qkv": [0, 1]})
    small = sec.apply_plan(student, plan)
    sec.save(tmp_path / "small.safetensors", small)
    loaded = sec.load(tmp_path / "small.safetensors", model=FromConfig(config))
    sec.apply_plan(student, plan, inplace=True)
    assert config.heads == 4
    assert student.config.heads == loaded.config.heads == small.config.heads == 2
    with torch.no_grad():
        assert torch.equal(teacher(x), before)
        assert torch.equal(loaded(x), small(x))
        assert torch.equal(student(x), small(x))


@pytest.mark.parametrize(
    ("draw", "free"),
    [
        (lambda y: torch.rand(y.shape[1]), False),
        (lambda y: torch.rand(1, y.shape[1]), True),
        (torch.rand_like, True),
        (lambda y: y.new_empty(y.shape[1]).bernoulli_(0.7), True),
    ],
)
def test_random_masks_of_channels_are_free_with_a_dimension_in_front(
    draw: Callable[[Tensor], Tensor], free: bool
) -> None:
    model = Drawn(lambda s, y: y * (draw(y) > 0.3) if s.training else y).eval()
    graph = sec.trace(model, X)
    assert graph["a"].prunable == free
    if free:
        plan = sec.plan_from(graph, {"a": [0, 3]})
        assert sec.verify(model, sec.apply_plan(model, plan), plan, X).ok
