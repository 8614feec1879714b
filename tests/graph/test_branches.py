"""Residual branches: found, removed, and compared with networks that have no branch in their code."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sec
from secateur.errors import UsageError
from secateur.graph.branches import Replacement, Substitute
from secateur.graph.substitutes import PassThrough, Zeros
from secateur.plan import PruningPlan
from secateur.surgery import operate
from tests.graph.residual_networks import (
    Attending,
    Basic,
    Chain,
    Gated,
    Nested,
    Parallel,
    Whole,
    filled_from,
    randomised,
)

X = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(1))

# Each block, the names of its branches, and the block without some of them.
BLOCKS: dict[str, tuple[Callable[[], nn.Module], dict[str, Callable[[], nn.Module]]]] = {
    "basic": (lambda: Basic(6, 5), {"": lambda: Basic(6, 5, absent=True)}),
    "whole": (lambda: Whole(6, 5), {"": lambda: Whole(6, 5, absent=True)}),
    "parallel": (
        lambda: Parallel(6, 5),
        {".left": lambda: Parallel(6, 5, {"left"}), ".right": lambda: Parallel(6, 5, {"right"})},
    ),
    "nested": (
        lambda: Nested(6, 5),
        {".inside": lambda: Nested(6, 5, {"inner"}), "": lambda: Nested(6, 5, {"outer"})},
    ),
    "gated": (lambda: Gated(6, 5), {"": lambda: Gated(6, 5, absent=True)}),
}


def traced(*blocks: nn.Module) -> tuple[nn.Module, sec.ChannelGraph]:
    model = randomised(Chain(*blocks))
    return model, sec.trace(model, X)


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_removed_branch_is_one_that_was_never_written(kind: str) -> None:
    make, without = BLOCKS[kind]
    model, graph = traced(make(), Basic(6, 4))
    names = [branch.name for branch in graph.branches]
    assert names == [*(f"blocks.0{tail}" for tail in without), "blocks.1"]
    assert all(branch.prunable for branch in graph.branches), graph.branches
    for tail, smaller in without.items():
        plan = PruningPlan(graph, {}, [f"blocks.0{tail}"])
        small = sec.apply_plan(model, plan)
        expected = filled_from(Chain(smaller(), Basic(6, 4)), model)
        assert torch.allclose(small(X), expected(X), atol=1e-6)
        gone = model.state_dict().keys() - small.state_dict().keys()
        assert set(plan.removed_tensors) == gone
        # Only a scale that belongs to a module that stays may be left over.
        left = set(small.state_dict()) - set(expected.state_dict())
        assert left == set(graph.branch(f"blocks.0{tail}").idle)
        assert sec.verify(model, small, plan, X).ok


def test_modules_are_replaced_by_modules_of_the_same_kind_of_result() -> None:
    model = randomised(Attending(6, 5))
    x = torch.randn(2, 3, 6)
    graph = sec.trace(model, x)
    assert [(branch.name, branch.reason) for branch in graph.branches] == [("attention", None), ("mlp", None)]
    for name in ("attention", "mlp"):
        small = sec.apply_plan(model, PruningPlan(graph, {}, [name]))
        expected = filled_from(Attending(6, 5, {name}), model)
        assert torch.allclose(small(x), expected(x), atol=1e-6)
        assert not list(small.get_submodule(name).parameters())
    assert graph.branch("attention").replacements == (
        Replacement("norm1", Substitute.PASS),
        Replacement("attention", Substitute.ZEROS, argument="hidden", entry=(0, 2)),
    )


def test_an_embedding_that_is_as_wide_as_the_stream_by_chance_follows_no_cut_of_it() -> None:
    model = randomised(Chain(Gated(5, 5), Basic(5, 4), width=5))
    graph = sec.trace(model, X)
    assert all(branch.prunable for branch in graph.branches), graph.branches
    plan = PruningPlan(graph, {"stem": [0, 2, 3], "embed": [1, 4]}, ["blocks.0"])
    small = sec.apply_plan(model, plan)
    check = sec.verify(model, small, plan, X)
    assert check.ok, check


def test_a_copy_protects_the_stream_from_operators_in_place() -> None:
    _, graph = traced(Whole(6, 4), Basic(6, 5))
    kinds = {item.path: (item.substitute, item.copied) for item in graph.branch("blocks.1").replacements}
    assert kinds == {
        "blocks.1.conv1": (Substitute.PASS, False),
        "blocks.1.bn1": (Substitute.PASS, True),  # the activation writes to its result
        "blocks.1.conv2": (Substitute.PASS, False),
        "blocks.1.bn2": (Substitute.ZEROS, False),
    }


def test_a_block_that_rectifies_what_is_rectified_already_is_passed_over() -> None:
    model, graph = traced(Basic(6, 5), Basic(6, 4))
    passed = Replacement("blocks.1", Substitute.PASS)
    assert graph.branch("blocks.1").replacements == (passed,)
    small = sec.apply_plan(model, PruningPlan(graph, {}, ["blocks.1"]))
    model.blocks[1].bn2.register_forward_hook(lambda _, __, out: torch.zeros_like(out))
    assert torch.equal(small(X), model(X))
    assert torch.equal(small.train()(X), model.train()(X))


class Rescaled(nn.Module):
    """Attention that is added to what it reads, and a division of the sum, as in networks of diffusion."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.heads = factor, 2
        self.q, self.k, self.v, self.out = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        size = self.k(x).shape[-1] // self.heads
        q, k, v = (f(x).unflatten(-1, (-1, size)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2).flatten(2)
        return (x + self.out(y)) / self.factor


@pytest.mark.parametrize(("factor", "substitute"), [(1, "pass"), (1.0, "pass"), (2.0, "zeros")])
def test_a_block_that_divides_by_one_is_passed_over(factor: float, substitute: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), Rescaled(factor), nn.Linear(6, 3)).eval()
    x = torch.randn(4, 7, 5)
    graph = sec.trace(model, x)
    (branch,) = graph.branches
    assert branch.replacements[-1].substitute.value == substitute
    assert (branch.modules == ("1",)) is (substitute == "pass")
    if substitute == "pass":
        keep = half_of(graph, 1).keep
        small = sec.apply_plan(model, PruningPlan(graph, keep, [branch.name]))
        lesser = sec.apply_plan(model, PruningPlan(graph, keep))
        lesser[1].out.register_forward_hook(lambda _, __, out: torch.zeros_like(out))
        assert torch.equal(small(x), lesser(x))


class Dropping(nn.Module):
    """A block that drops a part of its sum, or of the stream, in training mode."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.f, self.drop = nn.Linear(6, 6), nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "stream":
            return self.drop(x) + self.f(x)
        y = x + self.f(x)
        return self.drop(y if self.way == "sum" else torch.relu(y))


@pytest.mark.parametrize("way", ["sum", "rectified", "stream"])
def test_a_dropout_beside_a_branch_stays_in_training_mode(way: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), Dropping(way), nn.Linear(6, 3)).eval()
    x = torch.randn(4, 5)
    graph = sec.trace(model, x)
    (branch,) = graph.branches
    small = sec.apply_plan(model, PruningPlan(graph, {}, [branch.name]))
    assert isinstance(small[2], Dropping)
    model[2].f.register_forward_hook(lambda _, __, out: torch.zeros_like(out))
    for mode in (False, True):
        results = []
        for net in (small, model):
            torch.manual_seed(1)
            results.append(net.train(mode)(x))
        assert torch.equal(*results)


class Shared(nn.Module):
    """Blocks that cannot lose their branch."""

    def __init__(self) -> None:
        super().__init__()
        self.tied, self.other, self.late = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.other.weight = self.tied.weight
        self.project, self.shortcut = nn.Linear(6, 6), nn.Linear(6, 6)
        self.weight = nn.Parameter(torch.rand(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.tanh(self.tied(x))
        x = torch.tanh(self.other(x))
        x = x + torch.sigmoid(self.late(x))  # half, not zero, of zeros
        x = torch.tanh(self.project(x) + self.shortcut(x))
        x = x + torch.tanh(x @ self.weight)
        return torch.tanh(x + x**3)  # a formula


def test_what_cannot_be_removed_is_frozen_with_the_reason_or_no_branch() -> None:
    model = randomised(Shared())
    graph = sec.trace(model, torch.randn(3, 6))
    reasons = {branch.name: str(branch.reason) for branch in graph.branches}
    assert list(reasons) == ["tied", "late", "tanh_3"]
    assert reasons["tied"] == "'tied.weight' is used outside the branch too"
    assert reasons["late"].startswith("not verified: the outputs differ from the masked original")
    assert reasons["tanh_3"] == "no module computes this branch and nothing else"
    with pytest.raises(UsageError, match="'late' cannot be removed: not verified"):
        PruningPlan(graph, {}, ["late"])


class Reading(nn.Module):
    """Code that asks a module of the branch for an attribute or for its weight."""

    def __init__(self, weight: bool = False) -> None:
        super().__init__()
        self.weight = weight
        self.first, self.body = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        known = self.body.weight.ndim if self.weight else self.body.in_features
        return x + self.body(x) * (2.0 if known else 1.0)


def test_code_may_read_settings_of_a_module_of_the_branch() -> None:
    model, x = randomised(Reading()), torch.randn(3, 6)
    plan = PruningPlan(sec.trace(model, x), {}, ["body"])
    small = sec.apply_plan(model, plan)
    assert small.body.in_features == 6
    assert torch.equal(small(x), torch.tanh(model.first(x)))


def test_code_that_needs_a_weight_of_the_branch_freezes_it() -> None:
    graph = sec.trace(randomised(Reading(weight=True)), torch.randn(3, 6))
    assert "'NoneType' object has no attribute 'ndim'" in str(graph.branch("body").reason)


def blocks() -> tuple[nn.Module, ...]:
    return Basic(6, 5), Whole(6, 4), Parallel(6, 5), Nested(6, 5), Gated(6, 5)


def test_plans_are_values() -> None:
    _, graph = traced(*blocks())
    names = [branch.name for branch in graph.branches]
    outer = next(
        branch.name for branch in graph.branches if branch.name in {b.parent for b in graph.branches}
    )
    inner = next(branch.name for branch in graph.branches if branch.parent == outer)
    plan = PruningPlan(graph, {}, [outer, names[0]])
    same = PruningPlan(graph, {}, [names[0], inner, outer])  # a part of what goes says nothing
    assert plan.without == same.without == (names[0], outer)
    assert (plan, hash(plan)) == (same, hash(same))
    assert plan != PruningPlan(graph, {}, [names[0]])
    for again in (copy.copy(plan), PruningPlan.from_dict(graph, plan.to_dict())):
        assert (again.without, dict(again.keep)) == (plan.without, {})
    assert plan.branches_removed == 3
    first = f"removes 3 of {len(names)} residual branches"
    assert str(plan).splitlines()[0] == first
    assert str(plan).splitlines()[-2:] == [f"  {name}" for name in plan.without]
    after = graph.after(plan)
    assert [branch.name for branch in after.branches] == [
        name for name in names if name not in (names[0], outer, inner)
    ]
    assert set(after.tensors) == set(graph.tensors) - plan.removed_tensors
    assert {group.name for group in after.groups if not group.members} == {
        group.name for group in graph.groups if {m.tensor for m in group.members} <= plan.removed_tensors
    }


def test_wrong_names() -> None:
    _, graph = traced(Basic(6, 5))
    with pytest.raises(UsageError, match=r"no residual branch 'blocks\.1' in this network.*'blocks\.0'"):
        PruningPlan(graph, {}, ["blocks.1"])
    with pytest.raises(UsageError, match=r"write \['blocks\.0'\]"):
        PruningPlan(graph, {}, "blocks.0")  # type: ignore[arg-type]
    plan = PruningPlan(graph, {}, ["blocks.0"])
    with pytest.raises(UsageError, match="no residual branch"):
        PruningPlan(graph.after(plan), {}, ["blocks.0"])


def half_of(graph: sec.ChannelGraph, seed: int) -> PruningPlan:
    """About half of the branches and of the channels of every group."""
    draw = torch.Generator().manual_seed(seed)
    without = [item.name for item in graph.branches if item.prunable and torch.rand(1, generator=draw) < 0.5]
    keep = {
        group.name: torch.randperm(group.channels, generator=draw)[: -(-group.channels // 2)].tolist()
        for group in graph.prunable
    }
    return PruningPlan(graph, keep, without)


def test_several_cuts_with_an_optimizer_and_back() -> None:
    model, graph = traced(*blocks())
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    model(X).square().mean().backward()
    optimizer.step()
    for seed in range(3):
        plan = half_of(graph, seed)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        parameters, states = list(model.parameters()), dict(optimizer.state)
        operation = operate(model, plan, optimizer=optimizer, inplace=True)
        held = optimizer.param_groups[0]["params"]
        assert list(map(id, held)) == list(map(id, model.parameters()))
        assert {id(key) for key in optimizer.state} <= set(map(id, held))
        operation.undo()
        assert list(map(id, parameters)) == list(map(id, model.parameters()))
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        assert optimizer.state == states
        assert sec.verify(model, sec.apply_plan(model, plan), plan, X).ok
        sec.apply_plan(model, plan, optimizer=optimizer, inplace=True)
        graph = graph.after(plan)
        assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == dict(graph.tensors)
        model(X).square().mean().backward()
        optimizer.step()


@st.composite
def chains(draw: st.DrawFn) -> Chain:
    kinds = [
        lambda n: Basic(6, n),
        lambda n: Whole(6, n),
        lambda n: Parallel(6, n),
        lambda n: Nested(6, n),
        lambda n: Gated(6, 5),
    ]
    chosen = draw(st.lists(st.tuples(st.sampled_from(kinds), st.integers(2, 6)), min_size=1, max_size=4))
    return Chain(*(make(width) for make, width in chosen))


@pytest.mark.parametrize("examples", [5, pytest.param(12, marks=pytest.mark.slow)])
def test_any_branches_of_any_chain(examples: int) -> None:
    limits = settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    limits(given(chains(), st.integers(0, 99), st.data())(check_chain))()


def check_chain(net: Chain, seed: int, data: st.DataObject) -> None:
    model = randomised(net, seed)
    graph = sec.trace(model, X)
    assert all(branch.prunable for branch in graph.branches)
    names = [branch.name for branch in graph.branches]
    without = data.draw(st.lists(st.sampled_from(names), unique=True))
    keep = half_of(graph, seed).keep
    plan = PruningPlan(graph, keep, without)
    small = sec.apply_plan(model, plan)
    assert sec.verify(model, small, plan, X).ok
    # Without cut channels: a network whose values of the branches are set to zero by hooks.
    plan = PruningPlan(graph, {}, without)
    small = sec.apply_plan(model, plan)
    for name in plan.without:
        for item in graph.branch(name).replacements:
            if item.substitute is Substitute.ZEROS:
                model.get_submodule(item.path).register_forward_hook(lambda _, __, out: torch.zeros_like(out))
    wholes = [item.path for item in plan.replacements if isinstance(model.get_submodule(item.path), Whole)]
    for path in wholes:
        model.get_submodule(path).register_forward_hook(lambda _, args, __: args[0])
    rectified = [item.path for item in plan.replacements if isinstance(model.get_submodule(item.path), Basic)]
    for path in rectified:
        last = model.get_submodule(path).bn2
        last.register_forward_hook(lambda _, __, out: torch.zeros_like(out))
    nested = [item.path for item in plan.replacements if isinstance(model.get_submodule(item.path), Nested)]
    for path in nested:
        model.get_submodule(path).register_forward_hook(lambda _, args, __: args[0])
    assert torch.allclose(small(X), model(X), atol=1e-5)


def test_branches_are_given_by_name() -> None:
    _, graph = traced(Basic(6, 5))
    for wrong in (graph.branches, graph.branches[0], [1]):
        with pytest.raises(sec.UsageError, match="a list of names of residual branches, not"):
            PruningPlan(graph, {}, wrong)  # type: ignore[arg-type]


def test_what_was_not_removed_is_seen() -> None:
    model, graph = traced(Basic(6, 5), Whole(6, 4))
    plan = PruningPlan(graph, {}, ["blocks.1"])
    check = sec.verify(model, copy.deepcopy(model), plan, X)
    assert not check.ok
    assert "'blocks.1' was not replaced" in str(check)


def test_other_branches_than_the_plan_says_are_seen() -> None:
    model, graph = traced(Basic(6, 5), Basic(6, 5))
    other = sec.apply_plan(model, PruningPlan(graph, {}, ["blocks.0"]))
    with pytest.raises(UsageError, match="it has no tensor"):
        sec.verify(model, other, PruningPlan(graph, {}, ["blocks.1"]), X)


@pytest.mark.parametrize(
    "data",
    [
        3,
        {},
        {"path": "a"},
        {"path": "", "substitute": "zeros", "argument": 0, "entry": None, "single": [], "copied": False},
        {"path": "a", "substitute": "ones", "argument": 0, "entry": None, "single": [], "copied": False},
        {"path": "a", "substitute": "zeros", "argument": True, "entry": None, "single": [], "copied": False},
        {"path": "a", "substitute": "zeros", "argument": 0, "entry": [2, 1], "single": [], "copied": False},
        {
            "path": "a",
            "substitute": "zeros",
            "argument": 0,
            "entry": [0, 1 << 40],
            "single": [],
            "copied": False,
        },
        {"path": "a", "substitute": "zeros", "argument": 0, "entry": 3, "single": [], "copied": False},
        {"path": "a", "substitute": "zeros", "argument": 0, "entry": None, "single": [-1], "copied": False},
        {"path": "a", "substitute": "zeros", "argument": 0, "entry": None, "single": [], "copied": 1},
    ],
)
def test_data_of_another_form(data: object) -> None:
    with pytest.raises(UsageError, match="unknown form"):
        Replacement.from_dict(data)


def test_substitutes_return_the_form_of_the_result() -> None:
    x = torch.ones(2, 3)
    same = PassThrough()(x)
    assert same is x
    assert PassThrough(copied=True)(x) is not x
    found = PassThrough(argument="b", entry=(1, 3))(1, b=x)
    assert (found[0], found[2], found[1] is x) == (None, None, True)
    assert Zeros(single=(0,))(x).shape == (1, 3)
    assert not Zeros()(x).any()


def test_printing_a_graph_lists_branches_with_shares_and_reasons() -> None:
    graph = sec.trace(randomised(Shared()), torch.randn(3, 6))
    lines = str(graph).splitlines()
    start = lines.index("residual branches that stay:")
    assert lines[start + 1].startswith("  tied: 'tied.weight' is used")
    assert lines[start + 3] == "  tanh_3: no module computes this branch and nothing else"
    _, graph = traced(Basic(6, 5), Whole(6, 4))
    lines = str(graph).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("residual branch "))
    assert lines[start].split() == ["residual", "branch", "params", "MACs"]
    for line, name in zip(lines[start + 1 :], ("blocks.0", "blocks.1"), strict=False):
        found, *shares = line.split()
        assert found == name
        assert all(0 < float(share.removesuffix("%")) < 100 for share in shares)


def test_a_verification_says_how_many_branches_were_masked() -> None:
    model, graph = traced(Basic(6, 5))
    plan = PruningPlan(graph, {"blocks.0.conv1": [0]}, ["blocks.0"])
    assert dict(plan.keep) == {}  # the group goes with the branch
    check = sec.verify(model, sec.apply_plan(model, plan), plan, X)
    assert "equals the original with 1 residual branch masked" in str(check)
    assert check.to_dict()["branches_removed"] == 1


def test_branches_of_modules_that_are_left_alone_stay() -> None:
    model = randomised(Chain(Basic(6, 5), Whole(6, 4)))
    graph = sec.trace(model, X, ignore=["blocks.0.conv1"])
    assert [branch.reason for branch in graph.branches] == ["left alone on request ('blocks.0.conv1')", None]


class Mixed(nn.Module):
    """Two convolutions whose results are joined, and a third that makes the branch of them."""

    def __init__(self, pieces: bool) -> None:
        super().__init__()
        self.pieces, read = pieces, 4 if pieces else 8
        self.a, self.b = nn.Conv2d(read, 4, 1), nn.Conv2d(read, 4, 3, padding=1)
        self.c = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, 1) if self.pieces else (x, x)
        return torch.tanh(x + self.c(torch.cat([self.a(one).relu(), self.b(other)], 1)))


def test_branches_whose_parts_are_joined_outside_of_a_module() -> None:
    """Passing over both parts gives twice the stream, unless each of them reads a half."""
    for pieces in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 1), Mixed(pieces), nn.Conv2d(8, 3, 1)).eval()
        graph = sec.trace(model, X)
        (branch,) = graph.branches
        assert branch.prunable is pieces, branch.reason
        if not pieces:
            assert "is concatenated" in str(branch.reason)
            continue
        plan = PruningPlan(graph, {}, [branch.name])
        assert sec.verify(model, sec.apply_plan(model, plan), plan, X).ok


class Combined(nn.Module):
    """A stream and a branch that are combined by a function of the block, the stream and the branch."""

    def __init__(self, combine: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.wide, self.narrow = nn.LayerNorm(6), nn.Linear(6, 9), nn.Linear(9, 6)
        self.gain, self.gains = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.rand(6) + 0.5)
        self.combine = combine

    def forward(self, x: Tensor) -> Tensor:
        return self.combine(self, x, self.narrow(torch.relu(self.wide(self.norm(x)))))


@pytest.mark.parametrize(
    ("combine", "left"),
    [
        (lambda _, x, y: x - y, lambda _, x: x),
        (lambda _, x, y: sum([x, y]), lambda _, x: x),
        (lambda _, x, y: x * 0.5 + y, lambda _, x: x * 0.5),
        (lambda _, x, y: y + x / 2, lambda _, x: x / 2),
        (lambda block, x, y: block.gain * x + y, lambda block, x: block.gain * x),
        (lambda block, x, y: x * block.gains - y, lambda block, x: block.gains * x),
    ],
)
def test_what_is_left_of_a_stream_without_its_branch(combine: Any, left: Any) -> None:
    torch.manual_seed(0)
    blocks = [Combined(combine) for _ in range(2)]
    model, x = nn.Sequential(nn.Linear(4, 6), *blocks, nn.Linear(6, 3)), torch.randn(5, 4)
    graph = sec.trace(model, x)
    names = [branch.name for branch in graph.branches if branch.prunable]
    assert len(names) == 2
    plan = sec.PruningPlan(graph, {}, names[:1])
    small = sec.apply_plan(model, plan)
    assert sec.verify(model, small, plan, x).ok
    torch.testing.assert_close(small(x), model[3](model[2](left(model[1], model[0](x)))))
    assert plan.cost_after.macs == sec.cost(small, x).macs
    assert plan.cost_after.params == sec.cost(small, x).params


def test_a_stream_that_is_subtracted_from_what_is_computed_from_it_has_no_branch() -> None:
    model = nn.Sequential(nn.Linear(4, 6), Combined(lambda _, x, y: y - x), nn.Linear(6, 3))
    assert sec.trace(model, torch.randn(5, 4)).branches == ()


class Stacked(nn.Module):
    """A branch that concatenates values of more dimensions than the stream has."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        pairs = torch.cat([self.one(x).unsqueeze(-1), self.two(x).unsqueeze(-1)], 3)
        return self.head(x + pairs.sum(3))


def test_a_branch_may_concatenate_in_a_dimension_that_the_stream_lacks() -> None:
    torch.manual_seed(0)
    graph = sec.trace(Stacked().eval(), torch.randn(2, 5, 4))
    assert graph["stem"].reason is None
    assert graph.branches
