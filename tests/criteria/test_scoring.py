from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from secateur.criteria import criterion_names, resolve, score, watch
from secateur.criteria.base import Needs
from secateur.errors import UsageError
from secateur.graph import trace
from tests.criteria.nets import Plain, data, make

ALL = [name for name in criterion_names() if resolve(name).scores_channels]
X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
WITH_DATA = [name for name in ALL if resolve(name).needs is not Needs.NOTHING]


def state(net: nn.Module) -> dict[str, object]:
    """All that scoring must leave alone, comparable."""
    return {
        "tensors": {name: tensor.clone() for name, tensor in net.state_dict().items()},
        "grads": {
            name: None if p.grad is None else (id(p.grad), p.grad.clone())
            for name, p in net.named_parameters()
        },
        "requires_grad": {name: p.requires_grad for name, p in net.named_parameters()},
        "modes": {name: module.training for name, module in net.named_modules()},
        "hooks": [
            len(hooks or ())
            for module in net.modules()
            for hooks in (module._forward_pre_hooks, module._forward_hooks, module._backward_hooks)
        ]
        + [len(p._backward_hooks or ()) for p in net.parameters()],
        "random": torch.get_rng_state(),
        "threads": torch.get_num_threads(),
        "grad_enabled": torch.is_grad_enabled(),
    }


def same(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def used(seed: int = 0) -> nn.Module:
    """A network in the middle of training: gradients, mixed modes, a frozen weight."""
    net = make(Plain).train()
    inputs, targets = data(4, seed=seed)
    F.cross_entropy(net(inputs), targets).backward()
    net.norm.eval()
    net.b.weight.requires_grad_(False)
    net.d.weight.grad = None
    return net


def loader(examples: int = 6) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(*data(examples)), batch_size=3, shuffle=True)


@pytest.mark.parametrize("criterion", ALL)
def test_the_network_is_left_exactly_as_it_was(criterion: str) -> None:
    net = used()
    graph = trace(net, data(2)[0])
    before = state(net)
    scores = score(net, graph, criterion, loader(), F.cross_entropy)
    assert same(state(net), before)
    assert {*scores, *scores.unscored} == {group.name for group in graph.prunable}
    for group in graph.prunable:
        if group.name in scores:
            assert scores[group.name].shape == (group.channels,)
            assert scores[group.name].dtype is torch.float32


@pytest.mark.parametrize("criterion", WITH_DATA)
def test_the_network_is_left_exactly_as_it_was_when_scoring_fails(criterion: str) -> None:
    net = used()
    graph = trace(net, data(2)[0])
    before = state(net)

    def broken() -> Iterator[tuple[Tensor, Tensor]]:
        yield data(3)
        torch.rand(3)
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        score(net, graph, criterion, broken(), F.cross_entropy)
    assert same(state(net), before)


@pytest.mark.parametrize("criterion", WITH_DATA)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_scores_are_the_same_whatever_the_caller_has_switched_off(
    criterion: str, context: type[torch.no_grad]
) -> None:
    net = make(Plain)
    batch = data(4)
    graph = trace(net, batch[0])
    wanted = score(net, graph, criterion, [batch], F.cross_entropy)
    with context():
        assert score(net, graph, criterion, [batch], F.cross_entropy) == wanted


def test_no_parameter_gradient_is_computed_for_gates() -> None:
    net = make(Plain)
    batch = data(4)
    graph = trace(net, batch[0])
    calls: list[int] = []
    for parameter in net.parameters():
        parameter.register_hook(lambda _: calls.append(1))
    score(net, graph, "taylor", [batch], F.cross_entropy)
    assert calls == []


def test_batches_may_be_tuples_dicts_and_bare_tensors() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor, shift: Tensor) -> Tensor:
            return self.two(torch.tanh(self.one(x))) + shift

    net = Two()
    x, shift, targets = torch.randn(5, 3), torch.randn(5, 2), torch.randint(0, 2, (5,))
    graph = trace(net, (x, shift))
    tuples = score(net, graph, "taylor", [((x, shift), targets)], F.cross_entropy)
    dicts = score(net, graph, "taylor", [({"shift": shift, "x": x}, targets)], F.cross_entropy)
    assert tuples == dicts
    plain = make(Plain)
    inputs, labels = data(4)
    graph = trace(plain, inputs)
    assert score(plain, graph, "apoz", [inputs]) == score(plain, graph, "apoz", [(inputs, labels)])


def test_max_batches_stops_early_and_takes_no_more() -> None:
    net = make(Plain)
    parts = [data(3, seed=seed) for seed in range(3)]
    graph = trace(net, parts[0][0])
    taken = iter(parts)
    some = score(net, graph, "taylor", taken, F.cross_entropy, max_batches=2)
    assert some == score(net, graph, "taylor", parts[:2], F.cross_entropy)
    assert len(list(taken)) == 1


@pytest.mark.parametrize(
    ("criterion", "arguments", "message"),
    [
        ("taylor", {}, "taylor needs batches of data"),
        ("taylor", {"batches": [data(2)]}, "taylor needs a loss"),
        (
            "taylor",
            {"batches": [data(2)[0]], "loss_fn": F.cross_entropy},
            "pairs .inputs, targets., or mappings .* not a Tensor of 2",
        ),
        ("taylor", {"batches": [(1, 2, 3)], "loss_fn": F.cross_entropy}, "not a tuple of 3"),
        ("mutual-information", {"batches": [data(2)[0]]}, "pairs"),
        ("taylor", {"batches": [], "loss_fn": F.cross_entropy}, "no batches to compute taylor on"),
        ("apoz", {"batches": []}, "no batches to compute apoz on"),
        ("tailor", {}, "did you mean 'taylor'"),
        ("zzz", {}, "choose one of activation-mean"),
        ("taylor", {"batches": [data(2)], "loss_fn": lambda *_: torch.ones(())}, "does not depend on"),
    ],
)
def test_wrong_usage_says_what_to_do(criterion: str, arguments: dict[str, object], message: str) -> None:
    net = make(Plain)
    with pytest.raises(UsageError, match=message):
        score(net, trace(net, data(2)[0]), criterion, **arguments)  # type: ignore[arg-type]


def test_data_free_criteria_touch_no_data() -> None:
    def explode() -> Iterator[Tensor]:
        raise AssertionError("data was read")
        yield

    net = make(Plain)
    state_before = random.getstate()
    scores = score(net, trace(net, data(2)[0]), "magnitude", explode())
    assert random.getstate() == state_before
    assert len(scores) == 3


@pytest.mark.parametrize("criterion", ["taylor", "apoz", "reconstruction", "activation-mean"])
def test_no_batches_at_all(criterion: str) -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    graph = trace(network, torch.zeros(2, 4))
    with pytest.raises(
        UsageError, match=f"there are no batches to compute {criterion} on; pass at least one"
    ):
        score(network, graph, criterion, [], nn.functional.cross_entropy)


@pytest.mark.parametrize("criterion", [name for name in WITH_DATA if name != "taylor-weight"])
def test_inputs_without_a_dimension_for_examples_are_refused(criterion: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
    x, y = torch.randn(3, 8, 8), torch.tensor([1.0])
    graph = trace(net, x)
    assert graph.prunable
    with pytest.raises(UsageError, match=r"'2' reads .* \(4, 6, 6\) that holds channels in its first"):
        score(net, graph, criterion, [(x, y)], lambda outputs, _: outputs.square().mean())


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda *_: 0, "returned int"),
        (lambda *_: None, "returned NoneType"),
        (lambda output, _: output.detach().sum().item(), "returned float"),
        (lambda output, _: output.mean(1), r"returned a tensor of shape \(2,\)"),
    ],
)
@pytest.mark.parametrize("criterion", ["taylor", "obd"])
def test_a_loss_that_is_no_number_of_the_network_is_refused(
    criterion: str, loss: Callable[..., object], words: str
) -> None:
    net = make(Plain)
    inputs, targets = data(2)
    with pytest.raises(UsageError, match=f"loss_fn {words}, but a loss is a tensor with a single number"):
        score(net, trace(net, inputs), criterion, [(inputs, targets)], loss)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (None, "are of type NoneType"),
        (torch.ones(2, 5), "fails in '0'.*mat1 and mat2"),
        ({"y": X}, "keyword"),
    ],
)
def test_batches_that_the_network_refuses_are_named(inputs: object, words: str) -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    graph = trace(network, X)
    with pytest.raises(UsageError, match=f"cannot be called with a batch: .*{words}"):
        score(network, graph, "taylor", [(inputs, torch.ones(2, 2))], F.mse_loss)


class Overwriting(nn.Module):
    """Adds to a tensor after it was read; backward passes do not need it, since the reader is frozen."""

    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        self.inplace = inplace
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 6)
        self.c, self.d = (nn.Linear(6, 2).requires_grad_(False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.b(self.a(x).relu())
        first = self.c(hidden)
        hidden = hidden.add_(1) if self.inplace else hidden + 1
        return first + self.d(hidden)


@pytest.mark.parametrize("criterion", ["taylor", "obd"])
def test_an_activation_that_is_overwritten_is_scored_as_it_was_read(criterion: str) -> None:
    net, plain = Overwriting(inplace=True), Overwriting(inplace=False)
    plain.load_state_dict(net.state_dict())
    batches = [(torch.randn(5, 4), torch.randn(5, 2)) for _ in range(3)]
    found, wanted = (score(item, trace(item, X), criterion, batches, F.mse_loss) for item in (net, plain))
    assert set(found) == {"a", "b"}
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name])


def test_a_step_with_an_overwritten_activation_does_not_count_in_a_watch() -> None:
    net = Overwriting(inplace=True)
    inputs, targets = torch.randn(5, 4), torch.randn(5, 2)
    graph = trace(net, X)
    with watch(net, graph, "taylor") as watcher:
        for _ in range(3):
            F.mse_loss(net(inputs), targets).backward()
        found = dict(watcher.scores())
    wanted = score(net, graph, "taylor", [(inputs, targets)], F.mse_loss)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name])


def test_reentrant_checkpointing_is_refused_with_what_to_do() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(torch.tanh, self.b(self.a(x).relu()), use_reentrant=True)

    net = Checkpointed()
    with pytest.raises(UsageError, match="pass use_reentrant=False there"):
        score(net, trace(net, X), "taylor", [(X, torch.ones(2, 2))], F.mse_loss)
