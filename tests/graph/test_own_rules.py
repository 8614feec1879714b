"""Rules for operators of one's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import secateur as sec
from secateur.graph import OperatorContext, Role, Value, register_rule
from secateur.graph.rules import find_rule

GUIDE = Path(__file__).parents[2] / "docs" / "rules.md"


@torch.library.custom_op("sectest::mirrored", mutates_args=())
def mirrored(x: Tensor) -> Tensor:
    """Every channel minus the one at the other end."""
    return x - x.flip(1)


@mirrored.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Mirrored(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.ops.sectest.mirrored(self.one(x)))


def right(op: OperatorContext) -> Value:
    value = op.value("x")
    channels = value.labels[1]
    return value.replaced(1, op.join(channels, None if channels is None else channels[::-1].copy()))


def element_wise(op: OperatorContext) -> Value:
    return op.first()


def statistic(op: OperatorContext) -> Value:
    return op.statistic(Value.plain((2, 8)))


def misfit(op: OperatorContext) -> Value:
    return Value.plain((2, 9))


@pytest.fixture
def model() -> nn.Module:
    return Mirrored().eval()


def graph_with(monkeypatch: pytest.MonkeyPatch, model: nn.Module, rule: object) -> sec.ChannelGraph:
    """The graph as it is with a rule, which is forgotten after the test."""
    table = dict(sec.graph.rules._TABLE)
    monkeypatch.setattr("secateur.graph.rules._TABLE", table)
    register_rule("sectest::mirrored")(rule)
    return sec.trace(model, torch.randn(2, 3))


def test_without_a_rule_an_operator_freezes_what_it_touches(model: nn.Module) -> None:
    graph = sec.trace(model, torch.randn(2, 3))
    assert not graph.prunable
    assert graph["one"].reason == "operator sectest.mirrored.default in '' has no rule"


def test_with_a_rule_its_channels_are_followed(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_with(monkeypatch, model, right)
    assert graph["one"].channels == 4
    plan = sec.PruningPlan(graph, {"one": (0, 3)})
    small, x = sec.apply_plan(model, plan), torch.randn(5, 3)
    kept = [0, 3, 4, 7]
    wanted = model.two(model.one(x)[:, kept] @ _mirror(4) @ torch.eye(8)[kept])
    torch.testing.assert_close(small(x), wanted)


def _mirror(size: int) -> Tensor:
    return torch.eye(size) - torch.eye(size).flip(0)


def test_a_wrong_rule_cuts_nothing(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_with(monkeypatch, model, element_wise)
    assert not graph.prunable
    assert (graph["one"].reason or "").startswith("not verified: the outputs differ")


@torch.library.custom_op("sectest::dense", mutates_args=())
def dense(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight.T


@dense.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(len(x), len(weight))


class Dense(nn.Module):
    def __init__(self, read: int, made: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(made, read))

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.sectest.dense(x, self.weight)


@pytest.mark.parametrize(
    ("missing", "offered", "macs"),
    [("", ["0"], 40), ("roles", [], 40), ("read", [], 40), ("macs", ["0"], 0)],
)
def test_what_a_rule_of_an_operator_with_a_parameter_has_to_say(
    monkeypatch: pytest.MonkeyPatch, missing: str, offered: list[str], macs: int
) -> None:
    def rule(op: OperatorContext) -> Value:
        channels, weight = op.value("x").labels[1], op.value("weight").labels
        op.join(channels, weight[1])
        if missing != "roles":
            op.set_role(weight[0], Role.PRODUCER)
            op.set_role(weight[1], Role.CONSUMER)
        if missing != "read":
            op.read("x", 1, channels)
        if missing != "macs":
            op.add_macs(1, *op.value("weight").extents)
        return Value(op.shape, (None, weight[0]))

    monkeypatch.setattr("secateur.graph.rules._TABLE", dict(sec.graph.rules._TABLE))
    register_rule("sectest::dense")(rule)
    graph = sec.trace(nn.Sequential(Dense(3, 8), nn.Tanh(), Dense(8, 2)).eval(), torch.randn(4, 3))
    assert [group.name for group in graph.prunable] == offered
    assert graph.cost().macs == macs


def test_a_statistic_that_keeps_channels_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mean(Mirrored):
        def __init__(self) -> None:
            super().__init__()
            self.two = nn.Linear(1, 2)

        def forward(self, x: Tensor) -> Tensor:
            mirrored = torch.ops.sectest.mirrored(self.one(x))
            return self.two(mirrored.square().mean(1, keepdim=True))

    graph = graph_with(monkeypatch, Mean().eval(), statistic)
    assert not graph.prunable
    assert "gives the shape (2, 5), where its labels say (2, 8)" in (graph["one"].reason or "")


def test_labels_that_do_not_fit_are_refused(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(sec.TraceError, match=r"'sectest\.mirrored\.default'.*\(2, 9\).*\(2, 8\)"):
        graph_with(monkeypatch, model, misfit)


def test_rules_that_are_there_are_not_replaced_by_accident() -> None:
    with pytest.raises(sec.UsageError, match=r"'aten\.relu' has a rule; pass replace=True"):
        register_rule("aten::relu")
    register_rule("aten::relu", replace=True)(element_wise)
    assert find_rule("aten.relu_.default") is element_wise
    with pytest.raises(sec.UsageError, match="without overload"):
        register_rule("aten::relu.default")


def test_the_guide_runs(capsys: pytest.CaptureFixture[str]) -> None:
    [block] = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(block, str(GUIDE), "exec"), names)
    assert "equals the original with 3 channels masked" in capsys.readouterr().out
    model, small, x = (names[name] for name in ("model", "small", "x"))
    assert isinstance(model, nn.Sequential)
    assert isinstance(small, nn.Sequential)
    kept = [0, 1, 4, 5, 6, 7]
    wide = nn.functional.linear(x, model[0].weight[kept], model[0].bias[kept])
    gates = wide[:, 0::2] * wide[:, 1::2].sigmoid() * model[1].weight[[0, 2, 3]]
    wanted = nn.functional.linear(gates, model[2].weight[:, [0, 2, 3]], model[2].bias)
    torch.testing.assert_close(small(x), wanted)
