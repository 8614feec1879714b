from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

import secateur as sec
from secateur.errors import SurgeryError
from secateur.surgery import operate
from tests.graph.networks import build

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "sgd": lambda params: SGD(params, 0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda params: Adam(params, 0.01, amsgrad=True),
    "adamw": lambda params: AdamW(params, 0.01, foreach=False),
}


def every_second(graph: sec.ChannelGraph) -> sec.PruningPlan:
    return sec.PruningPlan(graph, {g.name: tuple(range(0, g.channels, 2)) for g in graph.prunable})


def train(model: nn.Module, optimizer: Optimizer, steps: int) -> None:
    model.train()
    for seed in range(steps):
        x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def state_of(optimizer: Optimizer, model: nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    return {name: dict(optimizer.state[parameter]) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("inplace", [True, False])
def test_optimizer_state_is_cut_like_the_parameters(kind: str, inplace: bool):
    model = build("residual")
    optimizer = OPTIMIZERS[kind](list(model.parameters()))
    train(model, optimizer, 2)
    graph = sec.trace(model, torch.randn(2, 3, 8, 8))
    plan = every_second(graph)
    before = state_of(optimizer, model)
    weights = copy.deepcopy(model.state_dict())
    small = sec.apply_plan(model, plan, optimizer=optimizer, inplace=inplace)

    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in small.parameters()}
    assert {id(p) for p in optimizer.state} == {id(p) for p in small.parameters()}
    by_dimension: dict[str, dict[int, np.ndarray]] = {}
    for (tensor, dim), kept in plan.kept_slots.items():
        by_dimension.setdefault(tensor, {})[dim] = kept
    for name, parameter in small.named_parameters():
        grid = [by_dimension.get(name, {}).get(d, np.arange(n)) for d, n in enumerate(weights[name].shape)]
        place = np.ix_(*grid)
        assert torch.equal(parameter.detach(), weights[name][place])
        assert before[name].keys() == optimizer.state[parameter].keys()
        for key, value in optimizer.state[parameter].items():
            old = before[name][key]
            assert torch.equal(value, old[place] if old.shape == weights[name].shape else old)
    train(small, optimizer, 2)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in small.parameters())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_goes_on_as_if_the_small_network_had_always_been_trained(kind: str):
    """The cut and its optimizer, against an optimizer made anew and given the cut state by hand."""
    model = build("flattened")
    optimizer = OPTIMIZERS[kind](list(model.parameters()))
    train(model, optimizer, 3)
    plan = every_second(sec.trace(model, torch.randn(2, 3, 8, 8)))
    sec.apply_plan(model, plan, optimizer=optimizer, inplace=True)
    twin = copy.deepcopy(model)
    other = OPTIMIZERS[kind](list(twin.parameters()))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 2)
    train(twin, other, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_in_place_keeps_identities_and_clears_gradients():
    model = build("residual")
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    identities = {name: id(parameter) for name, parameter in model.named_parameters()}
    plan = every_second(sec.trace(model, torch.randn(2, 3, 8, 8)))
    result = sec.apply_plan(model, plan, inplace=True)
    assert result is model
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == identities
    cut = {name for name, _ in plan.kept_slots}
    assert all(p.grad is None for name, p in model.named_parameters() if name in cut)
    assert model.stem.out_channels == 4
    assert model.norm.num_features == 4
    assert model.head.in_features == 4


def test_tracing_with_a_view_does_not_forbid_cutting_in_place():
    model = build("residual")
    images = torch.randn(8, 3, 8, 8)
    graph = sec.trace(model, images[:2])
    plan = every_second(graph)
    sec.apply_plan(model, plan, inplace=True)
    sec.trace(model, images[2:4])
    assert sec.cost(model, images[:1]).params == plan.cost_after.params


@pytest.mark.parametrize("constant", ["in the code", "an attribute"])
def test_a_constant_of_the_network_does_not_forbid_cutting_in_place(constant: str):
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.factor = nn.Linear(6, 8), nn.Linear(8, 3), torch.ones(1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            factor = self.factor if constant == "an attribute" else torch.tensor(0.5)
            return self.b(self.a(x).relu() * factor)

    model = Constant()
    graph = sec.trace(model, torch.randn(2, 6))
    assert not any(weakref.getweakrefcount(parameter) for parameter in model.parameters())
    sec.apply_plan(model, sec.plan_from(graph, {"a": [1]}), inplace=True)
    assert model.a.out_features == 7


def test_counting_with_a_view_does_not_forbid_cutting_in_place():
    model = build("residual")
    images = torch.randn(8, 3, 8, 8)
    plan = every_second(sec.trace(model, images[:2]))
    assert sec.cost(model, images[:1]).params == plan.cost_before.params
    sec.apply_plan(model, plan, inplace=True)
    assert sec.cost(model, images[:1]).params == plan.cost_after.params


def test_a_copy_shares_nothing_with_the_original():
    model = build("residual")
    before = copy.deepcopy(model.state_dict())
    small = sec.apply_plan(model, every_second(sec.trace(model, torch.randn(2, 3, 8, 8))))
    with torch.no_grad():
        for tensor in [*small.parameters(), *small.buffers()]:
            tensor.fill_(7)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.stem.out_channels == 8


def test_requires_grad_and_device_and_dtype_are_kept():
    model = build("residual").double()
    model.inner.weight.requires_grad_(False)
    plan = every_second(sec.trace(model, torch.randn(2, 3, 8, 8, dtype=torch.float64)))
    small = sec.apply_plan(model, plan)
    assert not small.inner.weight.requires_grad
    assert small.outer.weight.requires_grad
    assert small.inner.weight.dtype is torch.float64


def test_a_plan_fits_only_its_network_and_only_once():
    model = build("residual")
    plan = every_second(sec.trace(model, torch.randn(2, 3, 8, 8)))
    small = sec.apply_plan(model, plan)
    with pytest.raises(SurgeryError, match="applied already"):
        sec.apply_plan(small, plan)
    with pytest.raises(SurgeryError, match="no tensor"):
        sec.apply_plan(build("dense"), plan)


def test_a_held_parameter_is_refused_and_nothing_changes():
    model = build("residual")
    x = torch.randn(2, 3, 8, 8)
    plan = every_second(sec.trace(model, x))
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    train(model, optimizer, 1)
    before = copy.deepcopy(model.state_dict())
    loss = model.eval()(x).sum()  # the autograd graph references the parameters
    with pytest.raises(SurgeryError, match="something else references it"):
        sec.apply_plan(model, plan, optimizer=optimizer, inplace=True)
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before if "running" not in key)
    assert all(before[key].shape == after[key].shape for key in before)
    assert model.stem.out_channels == 8
    loss.backward()
    train(model, optimizer, 1)


@pytest.mark.parametrize("examples", [5, pytest.param(15, marks=pytest.mark.slow)])
def test_several_rounds_without_tracing_again(examples: int):
    settings(max_examples=examples)(given(data=st.data(), rounds=st.integers(1, 3))(check_rounds))()


def check_rounds(data: st.DataObject, rounds: int) -> None:
    model, x = build("dense").eval(), torch.randn(2, 3, 8, 8)
    graph = sec.trace(model, x)
    for _ in range(rounds):
        keep = {
            g.name: sorted(
                data.draw(st.sets(st.integers(0, g.channels - 1), min_size=1, max_size=g.channels))
            )
            for g in graph.prunable
        }
        plan = sec.PruningPlan(graph, keep)
        small = sec.apply_plan(model, plan)
        assert sec.verify(model, small, plan, x).ok
        model, graph = small, graph.after(plan)
        assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == dict(graph.tensors)
    fresh = sec.trace(model, x)
    assert fresh.cost() == graph.cost()


class Scaled(nn.Parameter):
    """A parameter of another class, with a constructor and attributes of its own."""

    __slots__ = ("origin",)

    def __new__(cls, data: torch.Tensor, scale: float) -> Scaled:
        made = torch.Tensor._make_subclass(cls, data, True)
        made.scale = scale
        made.origin = "somewhere"
        return made


def marked() -> nn.Module:
    """A residual network with something on every parameter and buffer, and a parameter of its own class."""
    model = build("residual")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        tensor.tags = {"name": name}
        tensor.no_weight_decay = True
    weight = Scaled(model.inner.weight.detach().clone(), 2.0)
    weight.tags, weight.no_weight_decay = {"name": "inner.weight"}, True
    model.inner.weight = weight
    return model


@pytest.mark.parametrize("inplace", [True, False])
def test_attributes_and_classes_of_parameters_and_buffers_are_kept(inplace: bool):
    model = marked()
    plan = every_second(sec.trace(model, torch.randn(2, 3, 8, 8)))
    small = sec.apply_plan(model, plan, inplace=inplace)
    for name, tensor in [*small.named_parameters(), *small.named_buffers()]:
        assert tensor.tags == {"name": name}
        assert tensor.no_weight_decay
    weight = small.inner.weight
    assert type(weight) is Scaled
    assert (weight.scale, weight.origin, weight.requires_grad) == (2.0, "somewhere", True)
    assert weight.shape[0] < 8
    if not inplace:
        assert small.norm.weight.tags is not model.norm.weight.tags


def test_an_attribute_that_refers_to_the_network_refers_to_the_copy():
    model = build("residual")
    model.stem.weight.owner = model.stem
    model.head.weight.partner = model.stem.weight
    model.head.bias.lock = threading.Lock()  # cannot be copied: is shared
    small = sec.apply_plan(model, every_second(sec.trace(model, torch.randn(2, 3, 8, 8))))
    assert small.stem.weight.owner is small.stem
    assert small.head.weight.partner is small.stem.weight
    assert small.head.bias.lock is model.head.bias.lock


@pytest.mark.parametrize("inplace", [True, False])
def test_gradient_hooks_are_called_with_gradients_of_the_new_shape(inplace: bool):
    model, seen = build("residual"), []
    handle = model.stem.weight.register_hook(lambda gradient: seen.append(("hook", gradient.shape)))
    model.stem.weight.register_hook(lambda gradient: gradient * 3)
    model.stem.weight.register_post_accumulate_grad_hook(lambda p: seen.append(("after", p.shape)))
    model.head.bias.register_hook(lambda gradient: seen.append(("uncut", gradient.shape)))
    plan = every_second(sec.trace(model, torch.randn(2, 3, 8, 8)))
    plain = sec.apply_plan(build_like(model), plan)
    small = sec.apply_plan(model, plan, inplace=inplace)
    x = torch.randn(2, 3, 8, 8)
    small(x).sum().backward()
    plain(x).sum().backward()
    shape = (4, *small.stem.weight.shape[1:])
    assert sorted(seen) == [("after", shape), ("hook", shape), ("uncut", (5,))]
    torch.testing.assert_close(small.stem.weight.grad, 3 * plain.stem.weight.grad)
    if inplace:
        handle.remove()
        seen.clear()
        small(x).sum().backward()
        assert [kind for kind, _ in seen if kind == "hook"] == []


def build_like(model: nn.Module) -> nn.Module:
    """The same network without hooks."""
    plain = build("residual")
    plain.load_state_dict(model.state_dict())
    return plain


def test_a_hook_of_the_copy_works_on_the_copy():
    model = build("residual")

    def attach(weight: nn.Parameter) -> None:
        def clear(_: torch.Tensor) -> None:
            weight.grad.zero_()

        weight.register_post_accumulate_grad_hook(clear)

    attach(model.stem.weight)
    small = sec.apply_plan(model, every_second(sec.trace(model, torch.randn(2, 3, 8, 8))))
    model.stem.weight.grad = torch.ones_like(model.stem.weight)
    small(torch.randn(2, 3, 8, 8)).sum().backward()
    assert not small.stem.weight.grad.any()
    assert model.stem.weight.grad.all()


class Uncopyable:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, gradient: torch.Tensor) -> None:
        pass


def test_a_hook_that_cannot_be_copied_is_refused_on_the_copy_and_carried_in_place():
    model = build("residual")
    model.stem.weight.register_hook(Uncopyable())
    optimizer = SGD(model.parameters(), 0.1)
    plan = every_second(sec.trace(model, torch.randn(2, 3, 8, 8)))
    with pytest.raises(SurgeryError, match=r"gradient hook of 'stem\.weight' cannot be copied.*in place"):
        sec.apply_plan(model, plan, optimizer=optimizer)
    assert optimizer.param_groups[0]["params"][0] is model.stem.weight
    sec.apply_plan(model, plan, optimizer=optimizer, inplace=True)
    train(model, optimizer, 1)


@pytest.mark.parametrize("inplace", [True, False])
def test_tied_parameters_stay_tied(inplace: bool):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 8)
            self.third, self.last = nn.Linear(8, 8), nn.Linear(8, 3)
            self.third.weight = self.second.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            x = x + self.second(x).relu()
            x = x + self.third(x).relu()
            return self.last(x)

    model, x = Tied(), torch.randn(3, 6)
    model.second.weight.tag = "tied"
    plan = every_second(sec.trace(model, x))
    assert plan.channels_removed
    small = sec.apply_plan(model, plan, inplace=inplace)
    assert small.third.weight is small.second.weight
    assert small.second.weight.tag == "tied"
    assert small.second.weight.shape == (4, 4)


def everything(model: nn.Module, optimizer: Optimizer) -> list[object]:
    """What a cut may touch: identities, and copies of values."""
    held: list[object] = []
    for tensor in [*model.parameters(), *model.buffers()]:
        values = [tensor, *([] if tensor.grad is None else [tensor.grad])]
        held += [id(tensor), type(tensor), tensor.shape, [(item.stride(), id(item)) for item in values]]
        held += [item.detach().clone().flatten().tolist() for item in values]
        held += [dict(vars(tensor)), tensor._backward_hooks, tensor._post_accumulate_grad_hooks]
    for module in model.modules():
        plain = {name: value for name, value in vars(module).items() if not name.startswith("_")}
        held += [plain, {name: id(value) for name, value in plain.items() if isinstance(value, list)}]
    for parameter, entry in optimizer.state.items():
        held += [id(parameter), id(entry), {key: id(value) for key, value in entry.items()}]
    for group in optimizer.param_groups:
        held += [id(group["params"]), [id(parameter) for parameter in group["params"]]]
    return held


@pytest.mark.parametrize("name", ["residual", "dense", "flattened", "layerscale", "grouped-places"])
@pytest.mark.parametrize("inplace", [True, False])
def test_an_undone_cut_leaves_no_trace(name: str, inplace: bool):
    model, calls = build(name), []
    optimizer = Adam(model.parameters(), 0.01)
    train(model, optimizer, 2)
    first = next(model.parameters())
    first.tag = "kept"
    first.register_hook(lambda gradient: calls.append(gradient.shape))
    plan = every_second(sec.trace(model, torch.randn(2, 3, 8, 8)))
    before, twin = everything(model, optimizer), copy.deepcopy(model)
    operation = operate(model, plan, optimizer=optimizer, inplace=inplace)
    assert everything(model, optimizer) != before
    operation.undo()
    assert everything(model, optimizer) == before
    other = Adam(twin.parameters(), 0.01)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 2)
    train(twin, other, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert calls == [first.shape] * 2


def test_an_undone_cut_of_a_recurrent_network_leaves_it_as_it_was():
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(5, 8, 2, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.lstm(x)[0][:, -1])

    model, x = Recurrent().eval(), torch.randn(2, 4, 5)
    optimizer = SGD(model.parameters(), 0.1)
    output = model(x).detach()
    plan = every_second(sec.trace(model, x))
    assert plan.channels_removed
    before = everything(model, optimizer)
    operate(model, plan, optimizer=optimizer, inplace=True).undo()
    assert everything(model, optimizer) == before
    assert torch.equal(model(x), output)


def test_a_refused_cut_does_not_forbid_the_backward_pass_of_a_graph_that_there_is():
    """The bias is exchanged before the weight that the graph references."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.randn(8))
            self.first, self.last = nn.Linear(6, 8, bias=False), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last((self.first(x) + self.bias).relu())

    model, x = Net(), torch.randn(4, 6)
    optimizer = SGD(model.parameters(), 0.1)
    plan = every_second(sec.trace(model, x))
    loss = model(x).square().sum()
    before = everything(model, optimizer)
    with pytest.raises(SurgeryError, match="something else references it"):
        sec.apply_plan(model, plan, optimizer=optimizer, inplace=True)
    assert everything(model, optimizer) == before
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_loss_that_has_been_used_does_not_forbid_a_cut():
    model = build("residual")
    loss = model(torch.randn(2, 3, 8, 8)).square().sum()
    loss.backward()
    sec.apply_plan(model, every_second(sec.trace(model, torch.randn(2, 3, 8, 8))), inplace=True)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert loss.isfinite()


def test_a_buffer_that_something_else_holds_is_cut_wherever_the_network_has_it():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
            self.register_buffer("mask", torch.rand(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x) * self.mask)

    model, x = Masked().eval(), torch.randn(4, 6)
    plan = every_second(sec.trace(model, x))
    assert plan.channels_removed
    model.mask.note = "mask"
    held = (torch.ones(8, requires_grad=True) * model.mask).sum()
    before = model.mask
    operation = operate(model, plan, inplace=True)
    assert model.mask.shape == (4,)
    assert model.mask.note == "mask"
    operation.undo()
    assert model.mask is before
    held.backward()
    free = Masked()
    free.load_state_dict(model.state_dict())
    mask = free.mask
    sec.apply_plan(free, plan, inplace=True)
    assert free.mask is mask  # nothing else holds it, so it keeps its identity
    assert mask.shape == (4,)


class Keeping(nn.Module):
    """Keeps what it computed, with its graph, whatever the caller says of gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.keeping = False
        self.kept: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.keeping:
            with torch.enable_grad():
                self.kept = self.last(self.first(x).relu())
            return self.kept
        return self.last(self.first(x).relu())


def test_what_the_smaller_network_keeps_does_not_forbid_taking_the_cut_back():
    model, x = Keeping().eval(), torch.randn(4, 6)
    plan = every_second(sec.trace(model, x))
    model.keeping = True
    model(x)
    weight = model.first.weight.detach().clone()
    operation = operate(model, plan, inplace=True)
    assert not model.kept.requires_grad  # its graph would hold on to the parameters
    with torch.no_grad():
        model(x)
    assert model.kept.grad_fn is not None
    operation.undo()
    assert torch.equal(model.first.weight, weight)
    model(x).sum().backward()
    assert model.first.weight.grad.shape == (8, 6)


@pytest.mark.parametrize("inplace", [True, False])
def test_weights_stay_in_the_order_of_channels_last(inplace: bool) -> None:
    last = torch.channels_last
    convs = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)]
    model, x = nn.Sequential(*convs).to(memory_format=last), torch.randn(2, 3, 9, 9)
    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    plan = every_second(sec.trace(model, x))
    small = sec.apply_plan(model, plan, inplace=inplace)
    for place in (0, 2, 4):
        assert small[place].weight.is_contiguous(memory_format=last)
        assert not small[place].weight.is_contiguous()
    torch.testing.assert_close(small(x), sec.apply_plan(plain, plan)(x))
    assert sec.apply_plan(plain, plan)[2].weight.is_contiguous()
