from __future__ import annotations

import functools
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

import secateur as sec
from secateur.graph.cutting.tensors import copy_with

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


class Runs(Plain):
    """Its forward pass is a function that it holds."""

    run: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


def closure(net: Runs) -> None:
    net.run = lambda x: net.b(net.a(x).relu())


def closure_over_modules(net: Runs) -> None:
    a, b = net.a, net.b
    net.forward = lambda x: b(a(x).relu())  # type: ignore[method-assign]


def closure_over_parameters(net: Runs) -> None:
    weight, bias = net.a.weight, net.a.bias
    net.run = lambda x: net.b(F.linear(x, weight, bias).relu())


def closure_over_a_list(net: Runs) -> None:
    layers = {"both": [net.a, net.b]}
    net.run = lambda x: layers["both"][1](layers["both"][0](x).relu())


def nested(net: Runs) -> None:
    def inner(x: Tensor) -> Tensor:
        return net.a(x).relu()

    def outer(x: Tensor) -> Tensor:
        return net.b(inner(x))

    net.run = outer


def recursive(net: Runs) -> None:
    def run(x: Tensor, depth: int = 2) -> Tensor:
        return run(x, depth - 1) if depth else net.b(net.a(x).relu())

    net.run = run


def defaults(net: Runs) -> None:
    def run(x: Tensor, a: nn.Module = net.a, *, b: nn.Module = net.b) -> Tensor:
        return b(a(x).relu())

    net.run = run


def partial(net: Runs) -> None:
    net.run = functools.partial(lambda a, x: net.b(a(x).relu()), net.a)


def bound_method(net: Runs) -> None:
    net.run = functools.partial(Plain.forward, net)
    net.forward = net.run  # type: ignore[method-assign, assignment]


def wrapped_method(net: Runs) -> None:
    whole = Plain.forward.__get__(net)

    @functools.wraps(whole)
    def forward(*args: Tensor) -> Tensor:
        return whole(*args)

    net.forward = forward  # type: ignore[method-assign]


def in_a_list(net: Runs) -> None:
    net.steps = [lambda x: net.a(x).relu(), {"last": lambda x: net.b(x * 1.0)}]  # type: ignore[assignment]
    net.run = lambda x: net.steps[1]["last"](net.steps[0](x))  # type: ignore[index, operator]


def weak(net: Runs) -> None:
    ref = weakref.ref(net)
    net.run = lambda x: Plain.forward(ref(), x)  # type: ignore[arg-type]


def forward_hook(net: Runs) -> None:
    net.run = lambda x: x
    net.register_forward_hook(lambda module, args, out: net.b(net.a(out).relu()))


def forward_pre_hook(net: Runs) -> None:
    weight = net.a.weight
    net.b.register_forward_pre_hook(lambda module, args: (F.linear(args[0], weight).relu(),))
    net.run = net.b


class Helper:
    """An ordinary object that a module holds."""

    def __init__(self, net: nn.Module) -> None:
        self.call = lambda x: net.b(net.a(x).relu())  # type: ignore[operator]


def in_an_object(net: Runs) -> None:
    net.helper = Helper(net)  # type: ignore[assignment]
    net.run = net.helper.call  # type: ignore[operator]


WAYS = [
    closure,
    closure_over_modules,
    closure_over_a_list,
    nested,
    recursive,
    defaults,
    partial,
    bound_method,
    wrapped_method,
    in_a_list,
    weak,
    forward_hook,
    in_an_object,
]
UNSEEN = [closure_over_parameters, forward_pre_hook]
"""The capture takes these parameters for constants, so there is nothing to cut."""


@pytest.mark.parametrize("way", [*WAYS, *UNSEEN])
def test_a_copy_computes_with_its_own_parameters(way: Callable[[Runs], None]) -> None:
    net = Runs()
    way(net)
    before = net(X)
    twin = copy_with(net, {})
    assert torch.equal(twin(X), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.fill_(0.5)
    assert torch.equal(net(X), before)
    assert not torch.allclose(twin(X), before)
    again = copy_with(twin, {})  # a copy of a copy, too
    with torch.no_grad():
        again.b.bias += 1
    assert not torch.allclose(again(X), twin(X))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("inplace", [True, False])
def test_a_network_that_runs_by_a_closure_is_cut(way: Callable[[Runs], None], inplace: bool) -> None:
    net = Runs().eval()
    way(net)
    graph = sec.trace(net, X)
    plan = sec.plan_from(graph, {graph.prunable[0].name: [0, 3, 7]})
    expected = sec.verify(net, sec.apply_plan(net, plan), plan, X)
    assert expected.ok
    result = sec.apply_plan(net, plan, inplace=inplace)
    assert result.a.weight.shape == (13, 6)
    assert result(X).shape == (4, 3)


def test_what_refers_to_nothing_that_was_copied_stays_the_same_object() -> None:
    net, calls = Plain(), []
    net.note = lambda: calls.append(1)  # type: ignore[assignment]
    net.activation = F.relu  # type: ignore[assignment]
    twin = copy_with(net, {})
    assert twin.note is net.note
    assert twin.activation is F.relu
    twin.note()  # type: ignore[operator]
    assert calls == [1]


def test_functions_that_share_a_cell_go_on_sharing_it() -> None:
    net = Plain()

    def attach() -> None:
        current = net.a

        def read() -> nn.Module:
            return current

        def write(module: nn.Linear) -> None:
            nonlocal current
            current = module

        net.read, net.write = read, write  # type: ignore[assignment]

    attach()
    twin = copy_with(net, {})
    assert twin.read() is twin.a  # type: ignore[operator]
    twin.write(twin.b)  # type: ignore[operator]
    assert twin.read() is twin.b  # type: ignore[operator]
    assert net.read() is net.a  # type: ignore[operator]


def conv_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 10, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).append(nn.Linear(10, 4))


def masked(model: nn.Sequential) -> None:
    prune.l1_unstructured(model[0], "weight", 0.4)
    prune.ln_structured(model[2], "weight", 0.3, n=2, dim=0)


def normalised(model: nn.Sequential) -> None:
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model[0])


@pytest.mark.parametrize("prepare", [masked, normalised])
@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("after_a_pass", [True, False])
def test_weights_that_a_hook_computes_do_not_forbid_a_cut(
    prepare: Callable[[nn.Sequential], None], inplace: bool, after_a_pass: bool
) -> None:
    model = conv_net().eval()
    prepare(model)
    x = torch.randn(2, 3, 8, 8)
    if after_a_pass:
        model(x)
    plan = sec.plan_from(sec.trace(model, x), {"0": [1, 4], "2": [0]})
    expected = sec.apply_plan(model, plan)
    assert sec.verify(model, expected, plan, x).ok
    whole = model(x).detach()
    small = sec.apply_plan(model, plan, inplace=inplace)
    assert torch.equal(small(x), expected(x))
    if not inplace:
        assert torch.equal(model(x), whole)
    small(x).sum().backward()
