from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import secateur as sec
from secateur.graph import Role
from secateur.verification import Expectation
from tests.graph.networks import NAMES, build


def cut(name: str, x: torch.Tensor) -> tuple[nn.Module, nn.Module, sec.PruningPlan]:
    model = build(name).eval()
    graph = sec.trace(model, x)
    plan = sec.PruningPlan(graph, {g.name: tuple(range(0, g.channels, 2)) for g in graph.prunable})
    return model, sec.apply_plan(model, plan), plan


@pytest.mark.parametrize("name", NAMES)
def test_a_right_cut_is_proved(name: str):
    x = torch.randn(2, 3, 8, 8)
    model, small, plan = cut(name, x)
    check = sec.verify(model, small, plan, x)
    assert check.ok
    assert check.max_error < 1e-5
    assert check.channels_removed == plan.channels_removed


@pytest.mark.parametrize("name", ["residual", "dense", "flattened", "layerscale", "grouped-places"])
def test_a_wrong_cut_of_the_right_shapes_is_caught(name: str):
    """Two kept channels change places in one reader: all shapes fit, the numbers do not."""
    x = torch.randn(2, 3, 8, 8)
    model, small, plan = cut(name, x)
    group = plan.graph.prunable[0]
    reader = group.roles(Role.CONSUMER)[-1]
    wrong = copy.deepcopy(small)
    weight = wrong.get_parameter(reader.tensor)
    with torch.no_grad():
        order = torch.arange(weight.shape[reader.dim])
        order[:2] = order[:2].flip(0)
        weight.copy_(weight.index_select(reader.dim, order))
    check = sec.verify(model, wrong, plan, x)
    assert not check.ok
    assert "DIFFERS" in str(check)


def test_another_batch_size_is_fine_and_another_image_size_is_not():
    x = torch.randn(2, 3, 8, 8)
    model, small, plan = cut("residual", x)
    assert sec.verify(model, small, plan, torch.randn(5, 3, 8, 8)).ok
    check = sec.verify(model, small, plan, torch.randn(5, 3, 8, 8))
    # the user's five examples, twelve draws, and training mode with two
    assert check.outputs == 25 + 12 * 10 + 10
    with pytest.raises(sec.UsageError, match="only the batch size"):
        sec.verify(model, small, plan, torch.randn(2, 3, 9, 9))
    with pytest.raises(sec.UsageError, match="contain no example"):
        sec.verify(model, small, plan, torch.randn(0, 3, 8, 8))


def test_an_expectation_outlives_a_cut_in_place():
    x = torch.randn(2, 3, 8, 8)
    model = build("residual")
    graph = sec.trace(model, x)
    plan = sec.PruningPlan(graph, {g.name: (0, 2) for g in graph.prunable})
    expectation = Expectation.of(model, plan, x)
    sec.apply_plan(model, plan, inplace=True)
    assert expectation.check(model).ok
    with torch.no_grad():
        model.head.bias += 1
    assert not expectation.check(model).ok


def test_modes_are_left_alone():
    x = torch.randn(2, 3, 8, 8)
    model, small, plan = cut("residual", x)
    model.train()
    small.train()
    small.norm.eval()
    before = copy.deepcopy(small.state_dict())
    sec.verify(model, small, plan, x)
    assert model.training
    assert small.training
    assert not small.norm.training
    assert all(torch.equal(before[key], value) for key, value in small.state_dict().items())


def test_a_network_that_gives_no_numbers_is_not_proved():
    x = torch.randn(2, 3, 8, 8)
    model, small, plan = cut("residual", x)
    with torch.no_grad():
        small.head.bias.fill_(float("nan"))
    assert not sec.verify(model, small, plan, x).ok


# -- what real weights hide ------------------------------------------------------------------

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(3))


class Branch(nn.Module):
    """A residual branch that is zero at first; wrong at some widths."""

    def __init__(self, kind: str, wrong_at: int = 0, *, in_training: bool = False) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = (
            nn.Linear(*sizes) for sizes in ((6, 8), (8, 12), (12, 8), (8, 4))
        )
        self.wrong_at, self.in_training = wrong_at, in_training
        self.scale = nn.Parameter(torch.zeros(1 if kind == "ReZero" else 8)) if kind != "zero layer" else 1.0
        if kind == "zero layer":
            nn.init.zeros_(self.b.weight)
            nn.init.zeros_(self.b.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        inner = self.a(x).relu()
        if inner.shape[1] == self.wrong_at and self.training >= self.in_training:
            inner = inner * 2 + 1
        return self.head(x + self.scale * self.b(inner))


@pytest.mark.parametrize("in_training", [False, True])
@pytest.mark.parametrize("kind", ["zero layer", "ReZero", "layer scale"])
def test_what_is_wrong_in_a_branch_that_is_still_zero_is_seen(kind: str, in_training: bool) -> None:
    model = Branch(kind, wrong_at=8, in_training=in_training)
    graph = sec.trace(model, X)
    state = copy.deepcopy(model.state_dict())
    for removed, right in (([0, 3], True), ([0, 3, 4, 7], False)):  # it does something else at eight
        plan = sec.plan_from(graph, {"a": removed})
        small = sec.apply_plan(model, plan)
        before = copy.deepcopy(small.state_dict())
        check = sec.verify(model, small, plan, X)
        assert check.ok is right, check
        assert not check.not_checked
        assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
        assert all(parameter.requires_grad and parameter.grad is None for parameter in small.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_second_cut_in_place_is_compared_with_prepared_weights() -> None:
    model = Branch("zero layer", wrong_at=8)
    graph = sec.trace(model, X)
    plan = sec.plan_from(graph, {"a": [1, 2]})
    sec.apply_plan(model, plan, inplace=True)
    for removed, right in (([9], True), ([0, 5], False)):
        second = sec.plan_from(graph.after(plan), {"a": removed})
        expected = Expectation.of(model, second, X)
        cut_once = copy.deepcopy(model)
        assert expected.check(sec.apply_plan(cut_once, second)).ok is right


def test_a_head_that_is_zero_is_compared_with_prepared_weights() -> None:
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))
    nn.init.zeros_(model[2].weight)
    plan = sec.plan_from(sec.trace(model, X), {"0": [1, 2]})
    check = sec.verify(model, sec.apply_plan(model, plan), plan, X)
    assert check.ok
    assert not check.not_checked


class Gradients(nn.Module):
    """Asks for gradients, as conditional checkpointing does; wrong at other widths than the original one."""

    def __init__(self, asks: str) -> None:
        super().__init__()
        self.a, self.b, self.c, self.asks = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 4), asks

    def forward(self, x: Tensor) -> Tensor:
        if self.asks == "own gradient":
            with torch.enable_grad():
                point = x.detach().requires_grad_()
                x = x + torch.autograd.grad((point**2).sum(), point)[0]
        h = self.b(self.a(x).relu())
        if self.asks == "none" and torch.is_grad_enabled() and not torch.compiler.is_exporting():
            raise RuntimeError("no gradients, please")
        if self.asks == "checkpoint" and torch.is_grad_enabled():
            return checkpoint(self.c, h, use_reentrant=False)
        if self.asks == "at every width" and self.training and h.requires_grad:
            h = h * 2
        asked = torch.is_grad_enabled() if self.asks == "enabled" else h.requires_grad
        return self.c(h * 2 if asked and self.asks in ("enabled", "tensor") and h.shape[1] != 12 else h)


@pytest.mark.parametrize(
    ("asks", "ok", "rest"),
    [
        ("enabled", False, ""),
        ("tensor", False, ""),
        ("checkpoint", True, ""),
        ("own gradient", True, ""),
        ("at every width", True, ""),
        ("none", True, "training mode with gradients (RuntimeError: no gradients, please)"),
    ],
)
def test_training_mode_runs_with_gradients(asks: str, ok: bool, rest: str) -> None:
    model = Gradients(asks)
    plan = sec.plan_from(sec.trace(model, X), {"b": [0, 1]})
    check = sec.verify(model, sec.apply_plan(model, plan), plan, X)
    assert check.ok is ok, check
    assert rest in str(check.not_checked)
    assert bool(check.not_checked) is bool(rest)
    if asks != "own gradient":  # capturing that leaves weak references behind
        sec.apply_plan(model, plan, inplace=True)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_inputs_without_numbers_give_no_verdict() -> None:
    class Poisoned(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * float("nan")

    norm = nn.BatchNorm1d(12)
    model = Poisoned(nn.Linear(6, 12), norm, nn.ReLU(), nn.Linear(12, 4)).eval()
    sound = nn.Sequential(*model)
    plan = sec.plan_from(sec.trace(sound, X), {"0": [1, 2]})
    nan = torch.full_like(X, float("nan"))
    assert sec.verify(sound, sec.apply_plan(sound, plan), plan, nan).ok  # by the random draws
    endless = sec.verify(sound, sec.apply_plan(sound, plan), plan, nan + float("inf"))
    assert endless.ok
    assert endless.outputs == sec.verify(sound, sec.apply_plan(sound, plan), plan, nan).outputs
    infinite = sec.verify(sound, sec.apply_plan(sound, plan), plan, torch.full_like(X, float("inf")))
    assert not infinite.ok
    assert infinite.outputs == 0
    assert "NOT CHECKED" in str(infinite)


def network() -> nn.Sequential:
    model = nn.Sequential(
        nn.Linear(6, 12),
        nn.BatchNorm1d(12),
        nn.Dropout(0.1),
        nn.ReLU(),
        nn.Linear(12, 12),
        nn.ReLU(),
        nn.Linear(12, 4),
    )
    with torch.no_grad():
        model[4].bias[:6] = -50.0  # dead units
    return model


def overwrite(small: nn.Sequential) -> None:
    with torch.no_grad():
        small[6].weight[:, :4] = 9.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (overwrite, "'6.weight' does not have the values"),
        (lambda small: small[1].num_batches_tracked.add_(100), "'1.num_batches_tracked'"),
        (lambda small: setattr(small[2], "p", 0.9), "'2.p' is 0.9 instead of 0.1"),
        (lambda small: small[0].requires_grad_(False), "requires_grad of '0.weight' is False"),
        (lambda small: small.double(), "torch.float64 instead of torch.float32"),
    ],
    ids=["dead weight", "counter", "dropout", "frozen", "dtype"],
)
def test_what_no_output_shows_is_compared(change: Callable[[nn.Sequential], object], said: str) -> None:
    model = network()
    plan = sec.plan_from(sec.trace(model, X), {"4": [0, 1]})
    small = sec.apply_plan(model, plan)
    assert sec.verify(model, small, plan, X).ok
    change(small)
    check = sec.verify(model, small, plan, X)
    assert not check.ok
    assert said in str(check)


def test_a_parameter_that_is_no_longer_tied_is_seen() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.body, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9)
            self.head.weight = self.embed.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(self.embed(tokens)).relu())

    model, tokens = Tied(), torch.arange(8).view(2, 4)
    plan = sec.plan_from(sec.trace(model, tokens), {"embed": [1, 4]})
    small = sec.apply_plan(model, plan)
    assert small.head.weight is small.embed.weight
    assert sec.verify(model, small, plan, tokens).ok
    small.head.weight = nn.Parameter(small.embed.weight.detach().clone())
    check = sec.verify(model, small, plan, tokens)
    assert not check.ok
    assert "the original has no parameter 'head.weight', or it is tied to another there" in str(check)


def test_other_dead_channels_than_planned_are_seen() -> None:
    model = network()
    graph = sec.trace(model, X)
    plan = sec.plan_from(graph, {"4": [0, 1]})
    check = sec.verify(model, sec.apply_plan(model, sec.plan_from(graph, {"4": [2, 3]})), plan, X)
    assert not check.ok
    assert "'4.weight' does not have the values that the plan keeps" in str(check)


def test_a_copy_that_shares_memory_with_the_original_is_seen() -> None:
    model = network()
    plan = sec.plan_from(sec.trace(model, X), {"4": [0, 1]})
    small = sec.apply_plan(model, plan)
    small[6].bias = model[6].bias
    assert "'6.bias' shares its memory with '6.bias' of the original" in str(
        sec.verify(model, small, plan, X)
    )


def test_nan_in_a_buffer_equals_nan() -> None:
    model = network()
    model.register_buffer("unset", torch.tensor([float("nan"), 1.0]))
    plan = sec.plan_from(sec.trace(model, X), {"4": [0, 1]})
    assert sec.verify(model, sec.apply_plan(model, plan), plan, X).ok


class Drops(nn.Module):
    """Drops values of a sum by a function, which no attribute of a module shows."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.probability = [probability]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.dropout(x + self.inner(x), self.probability[0], self.training).tanh())


@pytest.mark.parametrize("probability", [0.0, 0.3])
def test_a_dropout_that_vanished_or_changed_is_seen(probability: float) -> None:
    x = torch.randn(6, 4)
    model = Drops(0.1).eval()
    graph = sec.trace(model, x)
    plan = sec.plan_from(graph, {"stem": [0, 3]})
    small = sec.apply_plan(model, plan)
    assert sec.verify(model, small, plan, x).ok
    small.probability[0] = probability
    found = sec.verify(model, small, plan, x)
    assert not found.ok
    assert "training" in str(found)


@pytest.mark.parametrize("inplace", [False, True])
def test_random_slopes_are_the_same_at_every_width(inplace: bool) -> None:
    model = nn.Sequential(nn.Linear(6, 12), nn.RReLU(inplace=inplace), nn.Linear(12, 4))
    plan = sec.plan_from(sec.trace(model, X), {"0": [0, 5]})
    check = sec.verify(model, sec.apply_plan(model, plan), plan, X)
    assert check.ok
    assert "training" in check.modes


# -- wrong arguments --------------------------------------------------------------------------


def test_wrong_arguments_are_usage_errors() -> None:
    model = network()
    graph = sec.trace(model, X)
    plan = sec.plan_from(graph, {"4": [0, 1]})
    small = sec.apply_plan(model, plan)
    for arguments, said in (
        ((small, model, plan, X), "model has been cut already"),
        ((small, small, plan, X), "make the Expectation before it"),
        ((nn.Conv2d(3, 4, 1), small, plan, X), "not the network that the plan was made for"),
        ((model, nn.Conv2d(3, 4, 1), plan, X), "pass the network that apply_plan returned"),
        ((model, None, plan, X), "pruned is None: pass a network"),
        ((model, small, None, X), "plan is None: pass a pruning plan"),
        ((model, small, plan, {"y": X}), "does not run on these inputs"),
    ):
        with pytest.raises(sec.UsageError, match=said):
            sec.verify(*arguments)


def test_a_cut_network_with_the_old_graph_is_refused() -> None:
    model = network()
    graph = sec.trace(model, X)
    plan = sec.plan_from(graph, {"4": [0, 1]})
    small = sec.apply_plan(model, plan)
    said = "'4.weight' has shape .* instead of"
    with pytest.raises(sec.UsageError, match=said):
        sec.score(small, graph, "magnitude")
    with pytest.raises(sec.UsageError, match=said):
        sec.width_curves(small, graph, sec.score(model, graph, "magnitude"), [X])
    with pytest.raises(sec.UsageError, match=said):
        sec.reconstruct(small, small, plan, [X])
