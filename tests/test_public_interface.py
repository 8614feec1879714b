"""Every line of the public interface, on a small network."""

from __future__ import annotations

import ast
import pkgutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import secateur as sec
from secateur.graph import Role
from secateur.recipes import Training


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(self.conv1(x).relu())
        return out.relu()


class MyNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layer1 = nn.Sequential(Block(6))
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.layer1(self.stem(x)).mean((2, 3)))
        return out


@pytest.fixture
def model() -> MyNet:
    return MyNet()


@pytest.fixture
def example_inputs() -> Tensor:
    return torch.randn(2, 3, 8, 8)


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(16, 3, 8, 8), torch.randint(4, (16,))) for _ in range(3)]


Batches = list[tuple[Tensor, Tensor]]


def test_step_by_step(model: MyNet, example_inputs: Tensor, batches: Batches) -> None:
    graph = sec.trace(model, example_inputs)
    assert "layer1.0.conv1" in str(graph)
    scores = sec.score(model, graph, "taylor", batches, cross_entropy)
    curves = sec.width_curves(model, graph, scores, batches)
    widths = sec.Widths(multiple_of=2, min_channels=2, floors={"layer1.*": 0.5}, ignore=["stem"])
    plan = sec.make_plan(graph, scores, sec.Budget(macs=0.8), widths=widths, allocation="global")
    assert set(plan.keep) == {"layer1.0.conv1"}
    assert len(plan.keep["layer1.0.conv1"]) % 2 == 0
    assert sec.make_plan(graph, curves, sec.Budget(macs=0.5)).cost_after.macs <= graph.cost().macs / 2
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    small = sec.apply_plan(model, plan, optimizer=optimizer)
    assert small is not model
    check = sec.verify(model, small, plan, example_inputs)
    assert check.ok
    assert check.max_error <= check.tolerance
    sec.reconstruct(model, small, plan, batches)
    assert sec.apply_plan(model, plan, inplace=True) is model


def test_chosen_channels_and_the_same_share_of_every_group(model: MyNet, example_inputs: Tensor) -> None:
    graph = sec.trace(model, example_inputs)
    plan = sec.plan_from(graph, {"layer1.0.conv1": [3, 5]})
    assert plan.removed == {"layer1.0.conv1": (3, 5)}
    scores = sec.score(model, graph, "magnitude")
    half = sec.make_plan(graph, scores, sec.Budget(channels=0.5), allocation="uniform")
    assert sorted(len(kept) for kept in half.keep.values()) == [3, 4]


def test_pruning_in_one_call(model: MyNet, example_inputs: Tensor, batches: Batches) -> None:
    budget = sec.Budget(macs=0.5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    by_weights = sec.prune(model, example_inputs, budget)
    assert (by_weights.scores.criterion, by_weights.fits) == ("magnitude", ())
    result = sec.prune(
        model, example_inputs, budget, criterion="taylor", batches=batches, loss_fn=cross_entropy
    )
    assert result.scores.criterion == "taylor"

    class Cuts(sec.Callback):
        made = 0

        def on_cut(self, cut: object) -> None:
            self.made += 1

    counting = Cuts()
    recipe = sec.Recipe.preset("default", steps=2, finetune={"epochs": 1})
    trained = sec.prune(model, example_inputs, budget, batches=batches, recipe=recipe, callbacks=[counting])
    assert counting.made == len(trained.cuts) == 2
    for found in (by_weights, result, trained):
        assert found.ok
        assert found.verification.ok
        assert found.cost_after == sec.cost(found.model, example_inputs)
        assert found.cost_after.macs <= found.cost_before.macs / 2
        assert found.graph.cost() == found.cost_after == found.plan.cost_after
        assert len(str(found).splitlines()) <= 6
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with_optimizer = Training(batches, optimizer=torch.optim.SGD(model.parameters(), lr=0.01))
    assert sec.prune(model, example_inputs, budget, batches=with_optimizer, recipe=recipe).model is model


def test_files_costs_and_times(model: MyNet, example_inputs: Tensor, tmp_path: Path) -> None:
    small = sec.prune(model, example_inputs, sec.Budget(macs=0.5)).model
    path = tmp_path / "small.safetensors"
    sec.save(path, small)
    again = sec.load(path, model=MyNet())
    assert torch.equal(small(example_inputs), again(example_inputs))
    named = sec.build("torchvision:resnet18", classes=10)
    assert named.fc.out_features == 10
    sec.save(path, named, builder="torchvision:resnet18", classes=[str(n) for n in range(10)])
    assert sec.load(path).fc.out_features == 10
    assert sec.cost(model, example_inputs).params == sum(p.numel() for p in model.parameters())
    assert sec.measure_latency(model, example_inputs, min_seconds=0.01).median_ms > 0


def test_what_else_is_relied_on(model: MyNet, example_inputs: Tensor) -> None:
    graph = sec.trace(model, example_inputs)
    group = next(group for group in graph.groups if group.name == "layer1.0.conv1")
    assert (group.channels, group.reason) == (8, None)
    member = next(member for member in group.members if member.role is Role.PRODUCER)
    assert (member.tensor, member.dim, member.slots.shape) == ("layer1.0.conv1.weight", 0, (8, 1))
    plan = sec.PruningPlan(graph, {"layer1.0.conv1": (0, 1, 2)})
    assert (plan.keep, plan.removed) == ({"layer1.0.conv1": (0, 1, 2)}, {"layer1.0.conv1": (3, 4, 5, 6, 7)})
    assert graph.after(plan)["layer1.0.conv1"].channels == 3


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"macs": 1.0}, "macs: 1.0 is neither a share nor an amount; write a float between 0 and 1"),
        ({"params": 1.5}, "params: 1.5 is neither"),
        ({"channels": True}, "channels: True is neither"),
        ({"macs": "0.5"}, "macs: '0.5' is neither"),
        ({"latency": 12}, r'latency: 12 is neither .* write Budget\(latency="12 ms"\)'),
        ({"latency": 1}, r'latency: 1 is neither .* write Budget\(latency="1 ms"\)'),
        ({"latency": 12.5}, r'latency: 12.5 is neither .* write Budget\(latency="12.5 ms"\)'),
        ({"mac": 0.5}, "mac: unknown; did you mean 'macs'"),
    ],
)
def test_unclear_budgets_are_refused(limits: dict[str, object], message: str) -> None:
    with pytest.raises(sec.UsageError, match=message):
        sec.Budget(**limits)  # type: ignore[arg-type]


def test_no_module_shares_its_name_with_a_public_function() -> None:
    modules = {name for _, name, _ in pkgutil.iter_modules(sec.__path__)}
    assert not modules & set(sec.__all__)
    assert 20 <= len(sec.__all__) <= 30


def test_no_function_takes_more_than_eight_parameters() -> None:
    root = Path(sec.__file__).parent
    for package in ("budget", "recipes"):
        for path in (root / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef):
                    taken = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                    count = len([a for a in taken if a.arg not in ("self", "cls")])
                    assert count <= 8, (path, node.name)
