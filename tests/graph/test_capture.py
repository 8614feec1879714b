from __future__ import annotations

import copy
import logging
from operator import getitem

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateur import apply_plan, plan_from, verify
from secateur.errors import TraceError
from secateur.graph import trace
from secateur.graph.capture import operators
from secateur.graph.capture.composites import COMPOSITES
from secateur.graph.capture.program import call_arguments, canonical_names, capture, doubled, mode_of
from secateur.graph.rules import find_rule
from tests.graph.networks import NAMES, build


class DependsOnValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), Decides())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Decides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


def test_a_network_that_depends_on_values_is_refused_with_module_and_line():
    with pytest.raises(TraceError, match=r"'inner\.1' \(Decides\) at .*test_capture\.py:\d+"):
        capture(DependsOnValues(), torch.zeros(1, 4))


def test_wrong_example_inputs_are_refused_in_one_line():
    with pytest.raises(TraceError) as caught:
        trace(nn.Linear(4, 2), torch.zeros(1, 5))
    assert ".. " not in str(caught.value)
    assert ".. " not in str(caught.value)


def test_torch_does_not_log_an_error_that_is_told_in_one_line(caplog: pytest.LogCaptureFixture):
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    logger.addHandler(caplog.handler)
    try:
        with pytest.raises(TraceError):
            capture(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.zeros(1, 5))
    finally:
        logger.removeHandler(caplog.handler)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not logger.disabled


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [False, True])
def test_tracing_leaves_the_network_exactly_as_it_was(name: str, training: bool):
    model = build(name).train(training)
    next(iter(model.children())).train(not training)
    calls: list[int] = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    for parameter in list(model.parameters())[:1]:
        parameter.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    identities = [id(parameter) for parameter in model.parameters()]
    random_state, threads = torch.get_rng_state(), torch.get_num_threads()
    trace(model, torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert wanted == [parameter.requires_grad for parameter in model.parameters()]
    assert identities == [id(parameter) for parameter in model.parameters()]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert len(model._forward_hooks) == 1
    assert handle.id in model._forward_hooks
    assert torch.equal(random_state, torch.get_rng_state())
    assert threads == torch.get_num_threads()


def test_a_failed_capture_restores_the_mode():
    model = DependsOnValues().train()
    with pytest.raises(TraceError):
        capture(model, torch.zeros(1, 4))
    assert all(module.training for module in model.modules())


def test_the_mode_is_restored_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2)).train()
    model[0].eval()

    def fail() -> None:
        with mode_of(model, training=False):
            assert not model.training
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail()
    assert [module.training for module in model.modules()] == [True, False, True]


def test_inputs_may_be_a_tensor_a_tuple_or_a_mapping():
    x = torch.zeros(2, 3)
    assert call_arguments(x) == ((x,), {})
    assert call_arguments([x, x]) == ((x, x), {})
    assert call_arguments({"x": x}) == ((), {"x": x})


def test_only_single_examples_are_doubled():
    one, two = torch.zeros(1, 3), torch.zeros(2, 3)
    assert doubled(one)[0].shape == (2, 3)
    assert doubled(two) is two
    assert doubled({"x": one})["x"].shape == (2, 3)


def test_tied_tensors_go_by_their_first_name():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert canonical_names(model)["1.weight"] == "0.weight"


def test_every_operator_of_which_more_is_known_has_a_rule() -> None:
    kinds = [value for name, value in vars(operators).items() if name.isupper() and name != "GROUPS"]
    names = {name for kind in kinds for name in kind}
    assert len(names) > 40
    assert not [name for name in names - {*COMPOSITES} if find_rule(f"aten.{name}.default") is None]


def test_composite_operators_have_no_rule_and_parts_that_have_one() -> None:
    assert not [name for name in COMPOSITES if find_rule(f"aten.{name}.default")]
    x = torch.randn(4, 4)

    class Net(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            stacked = [
                stack([x, x]) for stack in (torch.hstack, torch.vstack, torch.dstack, torch.column_stack)
            ]
            split = [*torch.hsplit(x, 2), *torch.vsplit(x, 2), *torch.dsplit(torch.atleast_3d(x), 1)]
            return [
                *stacked,
                *split,
                torch.atleast_1d(x),
                torch.atleast_2d(x),
                torch.linalg.multi_dot([x, x, x]),
                torch.linalg.vecdot(x, x),
                x.fliplr().flipud().moveaxis(0, 1).ravel(),
                torch.trapezoid(x),
            ]

    program = capture(Net(), x)
    left = [node for node in program.graph.nodes if node.op == "call_function" and node.target is not getitem]
    assert not [str(node.target) for node in left if find_rule(str(node.target)) is None]
    assert all(isinstance(node.meta["val"], Tensor | list | tuple) for node in left)
    for one, other in zip(program.module(x), Net()(x), strict=True):
        assert torch.equal(one, other)


class OtherPlacesInTraining(nn.Module):
    """Reads positions in an order that NumPy gives, which the mode decides."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        order = np.array([2, 0, 1] if self.training else [1, 2, 0])
        y = self.one(x)
        return self.two(torch.tanh(y + y[:, torch.tensor(order)]))


def test_numbers_that_the_mode_decides_make_another_program():
    torch.manual_seed(0)
    model, x = OtherPlacesInTraining().eval(), torch.randn(2, 3, 3)
    graph = trace(model, x)
    plan = plan_from(graph, {"one": [1, 4]})
    check = verify(model, apply_plan(model, plan), plan, x)
    assert check.ok, check


class ReturnsScores(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4))

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"scores": self.body(x) * scale}


def test_a_graph_module_is_traced_like_the_module_that_it_was_made_from() -> None:
    written = ReturnsScores()
    model = torch.fx.symbolic_trace(written)
    model.body.register_forward_hook(lambda _, __, result: 2 * result)
    inputs = {"scale": torch.rand(5, 4), "x": torch.randn(5, 6)}
    model.eval(), written.eval()
    before = model(**inputs)["scores"]
    graph, expected = trace(model, inputs), trace(written, inputs)
    assert [(group.name, group.channels, group.reason) for group in graph.groups] == [
        (group.name, group.channels, group.reason) for group in expected.groups
    ]
    program = capture(model, inputs)
    assert (program.outputs, program.arguments) == (("['scores']",), ("scale", "x"))
    plan = plan_from(graph, {"body.0": [0, 5]})
    small = apply_plan(model, plan)
    assert small.body.get_submodule("0").weight.shape == (10, 6)
    assert verify(model, small, plan, inputs).ok
    assert torch.equal(model(**inputs)["scores"], before)
