"""What networks take and return besides tensors: data classes, named tuples, mappings, caches, nothing."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import secateur as sec
from secateur.ablation import ablate
from secateur.errors import TraceError, UsageError
from secateur.export import export
from secateur.outputs import parts_of
from secateur.recipes import Training
from secateur.recovery import recalibrate


@dataclasses.dataclass
class Scores:
    scores: Tensor
    hidden: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Nested:
    inner: Scores
    count: int


class Named(NamedTuple):
    scores: Tensor
    rest: tuple[Tensor, ...]


class Answer(OrderedDict[str, Any]):
    """A dict whose items are attributes and have numbers too, as those of large libraries."""

    def __getitem__(self, key: Any) -> Any:
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)


class Registered:
    """Registered in pytree, without names for its parts."""

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores


def taken_apart(item: Registered) -> tuple[list[Tensor], None]:
    return [item.scores], None


pytree.register_pytree_node(Registered, taken_apart, lambda items, _: Registered(*items))


class Cache:
    """Holds tensors, and is known to nobody."""

    def __init__(self, *states: Tensor) -> None:
        self.states = list(states)


class Kind(Enum):
    CLASSES = "classes"


class Net(nn.Module):
    """A residual network that returns what a function makes of scores and hidden values."""

    def __init__(self, returned: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.first, self.inner, self.outer = nn.Linear(6, 12), nn.Linear(12, 16), nn.Linear(16, 12)
        self.head = nn.Linear(12, 3)
        self.returned = returned

    def forward(self, x: Tensor) -> Any:
        y = self.first(x)
        hidden = torch.tanh(self.inner(y))
        return self.returned(self.head(y + self.outer(hidden)), hidden)


KINDS: dict[str, tuple[Callable[[Tensor, Tensor], Any], tuple[str, ...]]] = {
    "data class": (lambda s, h: Scores(s), (".scores", ".hidden")),
    "nested data class": (lambda s, h: Nested(Scores(s), 3), (".inner.scores", ".inner.hidden", ".count")),
    "named tuple": (lambda s, h: Named(s, (s * 2,)), (".scores", ".rest[0]")),
    "ordered dict with attributes": (lambda s, h: Answer(logits=s, loss=None), ("['logits']", "['loss']")),
    "registered without names": (lambda s, h: Registered(s), ("[0]",)),
    "default dict": (lambda s, h: defaultdict(list, a=[s]), ("['a'][0]",)),
    "mapping": (lambda s, h: UserDict(scores=s), ("['scores']",)),
    "cache beside": (lambda s, h: Answer(logits=s, cache=Cache(h)), ("['logits']",)),
    "cache within": (lambda s, h: (s, [Cache(h), s * 2]), ("[0]", "[1][1]")),
    "kind beside": (lambda s, h: (s, Kind.CLASSES), ("[0]",)),
}


def cut(net: nn.Module, inputs: Any) -> tuple[sec.ChannelGraph, nn.Module, Any]:
    graph = sec.trace(net, inputs)
    plan = sec.make_plan(
        graph, sec.score(net, graph, "random"), sec.Budget(channels=0.5), allocation="uniform"
    )
    small = sec.apply_plan(net, plan)
    return graph, small, sec.verify(net, small, plan, inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_network_returns(kind: str, tmp_path: Path) -> None:
    returned, paths = KINDS[kind]
    net, x = Net(returned).eval(), torch.randn(4, 6)
    registered = dict(pytree.SUPPORTED_NODES)
    graph, small, check = cut(net, x)
    assert graph.wiring.program.outputs == paths
    assert [group.name for group in graph.frozen] == ["head"]
    assert check.ok, check
    assert small.inner.out_features == 8
    assert type(small(x)) is type(net(x))
    assert sec.cost(net, x).params == sum(p.numel() for p in net.parameters())
    if kind != "nested data class":
        done = export(tmp_path / "net.pt2", small, x)
        assert done.format == "pt2"
    assert dict(pytree.SUPPORTED_NODES) == registered


def test_objects_that_are_not_known_are_named() -> None:
    net, x = Net(lambda s, h: Answer(logits=s, cache=Cache(h))).eval(), torch.randn(4, 6)
    graph, _, check = cut(net, x)
    assert "output['cache']: Cache" in str(graph)
    assert "output['cache'] (an object of Cache, whose tensors are not known)" in check.not_checked


def test_a_network_that_returns_nothing_else_is_refused() -> None:
    with pytest.raises(TraceError, match="it returns an object of Cache, a type whose tensors are not known"):
        sec.trace(Net(lambda s, h: Cache(s)), torch.randn(4, 6))


def test_wrong_numbers_within_a_data_class_are_seen() -> None:
    net, x = Net(lambda s, h: Nested(Scores(s), 3)).eval(), torch.randn(4, 6)
    graph = sec.trace(net, x)
    plan = sec.plan_from(graph, {"inner": [1, 5]})
    small = sec.apply_plan(net, plan)
    small.returned = lambda s, h: Nested(Scores(s + 1e-3), 3)
    assert not sec.verify(net, small, plan, x).ok


def test_an_output_in_parts() -> None:
    parts = parts_of({"a": (torch.ones(2), None), "b": Scores(torch.zeros(1)), "c": Kind.CLASSES, "d": 2})
    assert parts.paths == ("['a'][0]", "['a'][1]", "['b'].scores", "['b'].hidden", "['d']")
    assert parts.leaves[-1] == 2
    assert dict(parts.left_out) == {"['c']": "Kind"}
    assert [tensor.tolist() for tensor in parts.tensors] == [[1.0, 1.0], [0.0]]


# -- containers with methods of their own ----------------------------------------------------


class ByClass(dict[str, Any]):
    """A dict that stores under another key than it is given."""

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(str(type(key)), value)

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get(str(type(key)), default)


REGISTRY = ByClass()


class Collects(nn.Module):
    """Registers hooks in its first forward pass, which collect what its layers return."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 8)])
        self.head = nn.Linear(16, 3)
        self.collected: list[Tensor] = []
        REGISTRY[self] = nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        if not getattr(self, "hooked", False):
            for layer in self.layers:
                if isinstance(layer, REGISTRY.get(self)):
                    layer.register_forward_hook(lambda _, __, output: self.collected.append(output))
            self.hooked = True
        self.collected.clear()
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(torch.cat(self.collected, -1))


def test_hooks_of_the_first_forward_pass(tmp_path: Path) -> None:
    net, x = Collects().eval(), torch.randn(4, 6)
    expected = Collects().eval()
    expected.load_state_dict(net.state_dict())
    graph, small, check = cut(net, x)
    assert check.ok, check
    assert not hasattr(net, "hooked")
    assert REGISTRY.get(net) is nn.Linear
    assert {group.name for group in graph.prunable} == {"layers.0", "layers.1"}
    torch.testing.assert_close(net(x), expected(x))
    found = small(x)
    sec.save(tmp_path / "net.safetensors", small)
    again = sec.load(tmp_path / "net.safetensors", model=Collects())
    torch.testing.assert_close(again(x), found)


# -- arguments -------------------------------------------------------------------------------


class Labelled(nn.Module):
    """Takes keyword arguments only and computes its loss itself, as networks of large libraries do."""

    def __init__(self, normalised: bool = False) -> None:
        super().__init__()
        self.table, self.inner = nn.Embedding(20, 12), nn.Linear(12, 16)
        self.norm = nn.BatchNorm1d(16) if normalised else nn.Identity()
        self.head = nn.Linear(16, 3)

    def forward(self, *, ids: Tensor, mask: Tensor | None = None, labels: Tensor | None = None) -> Answer:
        x = self.table(ids)
        if mask is not None:
            x = x * mask[..., None]
        logits = self.head(torch.tanh(self.norm(self.inner(x.mean(1)))))
        answer = Answer()
        if labels is not None:
            answer["loss"] = F.cross_entropy(logits, labels)
        answer["logits"] = logits
        return answer


def batch(size: int = 8) -> dict[str, Tensor]:
    torch.manual_seed(size)
    mask = torch.ones(size, 5)
    mask[:, 3:] = torch.randint(0, 2, (size, 2))
    return {"ids": torch.randint(0, 20, (size, 5)), "mask": mask, "labels": torch.randint(0, 3, (size,))}


def without(given: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in given.items() if key != name}


@pytest.mark.parametrize(
    "inputs",
    [batch(), without(batch(), "labels"), {"ids": batch()["ids"], "mask": None}, {**batch(), "labels": None}],
    ids=["labels", "no labels", "no mask", "labels are None"],
)
def test_arguments_by_name(inputs: dict[str, Any]) -> None:
    graph, small, check = cut(Labelled().eval(), inputs)
    assert check.ok, check
    assert {group.name for group in graph.prunable} == {"table", "inner"}
    assert small.inner.weight.shape == (8, 6)


def test_the_order_of_named_arguments_does_not_matter() -> None:
    net, inputs = Labelled().eval(), without(batch(), "labels")
    inputs = {"ids": inputs["ids"], "mask": inputs["mask"].long()}  # of one shape and type
    turned = dict(reversed(inputs.items()))
    for traced, checked in ((inputs, turned), (turned, inputs)):
        graph = sec.trace(net, traced)
        plan = sec.plan_from(graph, {"inner": [1, 5]})
        assert sec.verify(net, sec.apply_plan(net, plan), plan, checked).ok


class Boxes(nn.Module):
    """Looks up differences of corners, which random integers would make negative."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(16, 12), nn.Linear(12, 3)

    def forward(self, boxes: Tensor) -> Tensor:
        return self.head(torch.tanh(self.table(boxes[:, 1] - boxes[:, 0])))


def test_integers_that_belong_together() -> None:
    boxes = torch.tensor([[1, 5], [3, 3], [2, 14], [0, 9]])
    graph, _, check = cut(Boxes().eval(), boxes)
    assert [group.name for group in graph.prunable] == ["table"]
    assert check.ok, check


# -- batches ---------------------------------------------------------------------------------


class Wrapped(UserDict[str, Tensor]):
    """A batch as tokenisers return it."""


def as_pair(given: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    return without(given, "labels"), given["labels"]


@pytest.mark.parametrize("criterion", ["taylor", "taylor-weight", "activation-mean", "mutual-information"])
@pytest.mark.parametrize("kind", [dict, Wrapped])
def test_scores_of_mappings_are_those_of_pairs(criterion: str, kind: type) -> None:
    net = Labelled().eval()
    graph = sec.trace(net, batch())

    def loss_fn(output: Answer, labels: Tensor) -> Tensor:
        return F.cross_entropy(output["logits"], labels)

    def of_batch(output: Answer, given: dict[str, Tensor]) -> Tensor:
        return loss_fn(output, given["labels"])

    pairs = sec.score(net, graph, criterion, [as_pair(batch())], loss_fn)
    own = sec.score(net, graph, criterion, [kind(batch())])
    told = sec.score(net, graph, criterion, [kind(batch())], of_batch)
    for name in pairs:
        torch.testing.assert_close(own[name], pairs[name])
        torch.testing.assert_close(told[name], pairs[name])


def test_least_squares_and_curves_of_mappings_are_those_of_pairs() -> None:
    net = Labelled().eval()
    graph = sec.trace(net, without(batch(), "labels"))
    scores = sec.score(net, graph, "magnitude")
    mappings, pairs = [Wrapped(batch(64)), batch(32)], [as_pair(batch(64)), as_pair(batch(32))]
    # Another order, as a collating function may make it.
    turned = [dict(reversed(list(item.items()))) for item in mappings]
    curves = [sec.width_curves(net, graph, scores, given) for given in (mappings, pairs, turned)]
    assert curves[0].to_dict() == curves[1].to_dict() == curves[2].to_dict()
    plan = sec.make_plan(graph, scores, sec.Budget(channels=0.5), allocation="uniform")
    fitted = []
    for given in (mappings, pairs):
        small = sec.apply_plan(net, plan)
        sec.reconstruct(net, small, plan, given)
        fitted.append(small.head.weight)
    torch.testing.assert_close(*fitted)


def test_ablation_of_mappings_is_that_of_pairs() -> None:
    net = Labelled().eval()
    graph = sec.trace(net, batch())  # with labels, so that the output begins with a loss

    def loss_fn(output: Answer, labels: Tensor) -> Tensor:
        return F.cross_entropy(output["logits"], labels)

    pairs = ablate(net, sec.trace(net, without(batch(), "labels")), [as_pair(batch())], loss_fn)
    found = ablate(net, graph, [batch()], lambda output, given: loss_fn(output, given["labels"]))
    for name in pairs:
        torch.testing.assert_close(found[name], pairs[name])


def test_recalibration_of_mappings() -> None:
    nets = [Labelled(normalised=True).eval() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    for net, given in zip(nets, (Wrapped(batch()), as_pair(batch())), strict=True):
        assert recalibrate(net, [given]) == 1
    torch.testing.assert_close(nets[0].norm.running_mean, nets[1].norm.running_mean)


@pytest.mark.parametrize("kind", [dict, Wrapped])
def test_pruning_with_training_on_mappings(kind: type) -> None:
    net, inputs = Labelled(normalised=True), without(batch(), "labels")
    batches = [kind(batch(16)), kind(batch(16))]
    recipe = sec.Recipe.preset("default", finetune={"epochs": 2})
    training = Training(batches, validation=batches)
    result = sec.prune(net, inputs, sec.Budget(macs=0.6), batches=training, recipe=recipe)
    assert result.ok
    assert sec.cost(result.model, inputs).macs < sec.cost(net, inputs).macs
    assert sec.prune(net, inputs, sec.Budget(macs=0.6), batches=batches).ok


def test_batches_of_wrong_kinds_say_what_is_expected() -> None:
    net = Labelled().eval()
    graph = sec.trace(net, without(batch(), "labels"))
    with pytest.raises(UsageError, match=r"pairs \(inputs, targets\), or mappings of keyword arguments"):
        sec.score(net, graph, "taylor", ["text"], F.cross_entropy)
    with pytest.raises(UsageError, match="without a loss for a batch that is a mapping: put the labels"):
        sec.score(net, graph, "taylor", [without(batch(), "labels")])
    with pytest.raises(UsageError, match="has no 'mask', which the network was traced with"):
        sec.width_curves(net, graph, sec.score(net, graph, "magnitude"), [without(batch(), "mask")])
    short = {**batch(), "ids": batch()["ids"][:, :4], "mask": batch()["mask"][:, :4]}
    with pytest.raises(UsageError, match="of different shapes"):
        sec.width_curves(net, graph, sec.score(net, graph, "magnitude"), [batch(), short])
    with pytest.raises(UsageError, match="has no 'labels'"):
        sec.score(net, graph, "mutual-information", [without(batch(), "labels")])


def test_named_arguments_are_exported(tmp_path: Path) -> None:
    net, inputs = Labelled().eval(), without(batch(), "labels")
    done = export(tmp_path / "net.pt2", net, inputs)
    program = torch.export.load(tmp_path / "net.pt2").module()
    assert done.format == "pt2"
    torch.testing.assert_close(program(*inputs.values())[0], net(**inputs)["logits"])


# -- results that nothing reads --------------------------------------------------------------


class Shape(nn.Module):
    """Picks one channel for its shape alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.a(x))
        size = y[:, -1].shape[0]
        return self.b(y) + torch.zeros(size, 1)


class Fixed(Shape):
    """Picks a channel that is gone after a cut."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.a(x))
        y[:, 7]
        return self.b(y)


def test_a_channel_that_is_picked_for_its_shape_stays_free() -> None:
    graph, _, check = cut(Shape().eval(), torch.randn(4, 6))
    assert [group.name for group in graph.prunable] == ["a"]
    assert check.ok


def test_code_that_picks_a_channel_in_vain_must_still_run() -> None:
    graph = sec.trace(Fixed().eval(), torch.randn(4, 6))
    assert "the forward pass fails" in str(graph["a"].reason)


class Tied(nn.Module):
    """Words whose table is the last layer too, and a stream that meets a constant and is returned."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 6)
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.a(self.words(x))
        z = self.b(y + torch.arange(6.0).sin())
        return y, z @ self.b.weight @ self.words.weight.t()


def test_outputs_are_named_before_other_reasons() -> None:
    graph = sec.trace(Tied().eval(), torch.randint(0, 9, (2, 3)))
    table = {
        part.dim: group.reason
        for group in graph.groups
        for part in group.members
        if part.tensor == "words.weight"
    }
    assert table[0] == graph["a"].reason == "is an output of the network"
