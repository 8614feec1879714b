from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from secateur.criteria import criterion_names, resolve, score, watch
from secateur.criteria.base import Needs
from secateur.errors import UsageError
from secateur.graph import trace
from tests.criteria.nets import NETS, Gated, Plain, Residual, data, gate_gradients, make

WATCHING = [
    name
    for name in criterion_names()
    if resolve(name).needs is not Needs.OWN_PASSES and resolve(name).scores_channels
]


def hook_count(net: nn.Module) -> int:
    return sum(
        len(hooks or ())
        for module in net.modules()
        for hooks in (module._forward_pre_hooks, module._forward_hooks, module._backward_hooks)
    ) + sum(len(parameter._backward_hooks or ()) for parameter in net.parameters())


def train(net: nn.Module, steps: int, after: Callable[[], None] = lambda: None) -> list[Tensor]:
    """Ordinary training steps; returns every gradient and every parameter on the way."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    seen = []
    for step in range(steps):
        inputs, targets = data(6, seed=step)
        optimizer.zero_grad()
        F.cross_entropy(net(inputs), targets).backward()
        seen += [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]
        optimizer.step()
        seen += [parameter.detach().clone() for parameter in net.parameters()]
        after()
    return seen


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("criterion", ["taylor", "taylor-weight", "activation-std"])
def test_training_is_the_same_to_the_bit_while_it_is_watched(kind: type[Gated], criterion: str) -> None:
    alone, watched = make(kind).train(), make(kind).train()
    graph = trace(watched, data(2)[0])
    wanted = train(alone, 3)
    with watch(watched, graph, criterion):
        found = train(watched, 3)
    assert len(found) == len(wanted) > 0
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_gradients_that_meet_in_a_stream_are_added_in_the_same_order() -> None:
    """Three and more consumers of one value: floating-point sums depend on their order."""

    class Fan(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.branches = nn.ModuleList(nn.Conv2d(8, 8, k, padding=k // 2) for k in (1, 3, 5, 1, 3))
            self.head = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for branch in self.branches:
                x = x + torch.tanh(branch(x)) * branch(F.relu(x))
            return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    net = Fan()
    inputs, targets = data(4)
    graph = trace(net, inputs)
    F.cross_entropy(net(inputs), targets).backward()
    wanted = [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]
    net.zero_grad()
    with watch(net, graph, "taylor"):
        F.cross_entropy(net(inputs), targets).backward()
    found = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_several_steps_add_up_over_examples() -> None:
    net = make(Residual)
    graph = trace(net, data(2)[0])
    gates: list[dict[str, Tensor]] = []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    watcher = watch(net, graph, "taylor")
    for step in range(3):
        inputs, targets = data(4 + step, seed=step)
        gates.append(gate_gradients(net, inputs, targets))
        with watcher:
            optimizer.zero_grad()
            F.cross_entropy(net(inputs), targets).backward()
            optimizer.step()
    scores = watcher.scores()
    for name in net.widths:
        wanted = torch.cat([step[name] for step in gates]).abs().mean(0)
        torch.testing.assert_close(scores[name], wanted, rtol=1e-5, atol=1e-7)


def scores_of(net: Gated, run: Callable[[], None], criterion: str = "taylor") -> dict[str, Tensor]:
    with watch(net, trace(net, data(2)[0]), criterion) as watcher:
        run()
        return dict(watcher.scores())


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        torch.testing.assert_close(found[name], values, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("criterion", ["taylor", "taylor-weight"])
def test_a_forward_pass_without_a_backward_pass_leaves_nothing(criterion: str) -> None:
    net = make(Plain)

    def step() -> None:
        inputs, targets = data(5)
        F.cross_entropy(net(inputs), targets).backward()

    def with_evaluation() -> None:
        net(data(9, seed=1)[0])
        step()
        net(data(3, seed=2)[0])
        with torch.no_grad():
            net(data(2, seed=3)[0])

    assert_same(scores_of(net, with_evaluation, criterion), scores_of(net, step, criterion))


@pytest.mark.parametrize("criterion", ["taylor", "taylor-weight"])
@pytest.mark.parametrize("zero", [True, False])
def test_accumulated_passes_count_each(zero: bool, criterion: str) -> None:
    net = make(Plain)

    def run() -> None:
        for seed in range(3):
            inputs, targets = data(4, seed=seed)
            F.cross_entropy(net(inputs), targets).backward()
            if zero:
                net.zero_grad()

    parts = [data(4, seed=seed) for seed in range(3)]
    graph = trace(net, parts[0][0])
    assert_same(scores_of(net, run, criterion), dict(score(net, graph, criterion, parts, F.cross_entropy)))


def test_two_forward_passes_before_one_backward_pass_count_each() -> None:
    net = make(Plain)
    parts = [data(4, seed=seed) for seed in range(2)]

    def run() -> None:
        sum(F.cross_entropy(net(inputs), targets) for inputs, targets in parts).backward()

    graph = trace(net, parts[0][0])
    assert_same(scores_of(net, run), dict(score(net, graph, "taylor", parts, F.cross_entropy)))


def test_a_loss_in_two_parts_counts_once_for_its_forward_pass() -> None:
    """The value per example is complete only after the last backward pass of the step."""
    net = make(Plain)
    inputs, targets = data(4)

    def run() -> None:
        outputs = net(inputs)
        F.cross_entropy(outputs, targets).backward(retain_graph=True)
        (-0.9 * F.cross_entropy(outputs, targets)).backward()

    wanted = score(net, trace(net, inputs), "taylor", [(inputs, targets)], F.cross_entropy)
    found = scores_of(net, run)
    for name in wanted:
        torch.testing.assert_close(found[name], 0.1 * wanted[name], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_activations_are_seen_once(reentrant: bool) -> None:
    class Checkpointed(Plain):
        def forward(self, x: Tensor) -> Tensor:
            if torch.is_grad_enabled() and not torch.compiler.is_compiling():
                if reentrant:
                    x = x.requires_grad_()
                return checkpoint(super().forward, x, use_reentrant=reentrant)
            return super().forward(x)

    plain = make(Plain)
    net = Checkpointed()
    net.load_state_dict(plain.state_dict())
    net.eval()
    graph = trace(plain, data(2)[0])
    inputs, targets = data(4)
    with watch(net, graph, "taylor") as watcher:
        F.cross_entropy(net(inputs), targets).backward()
        found = dict(watcher.scores())
    assert_same(found, dict(score(plain, graph, "taylor", [(inputs, targets)], F.cross_entropy)))


@pytest.mark.parametrize("criterion", WATCHING)
def test_no_hook_survives_however_it_ends(criterion: str) -> None:
    net = make(Plain)
    graph = trace(net, data(2)[0])
    before = hook_count(net)
    watcher = watch(net, graph, criterion)
    with pytest.raises(RuntimeError, match="expected input"), watcher:
        net(torch.zeros(2, 7, 8, 8))
    assert hook_count(net) == before


def test_no_hook_survives_when_hooking_fails() -> None:
    net = make(Plain)
    graph = trace(net, data(2)[0])
    net.b.weight.requires_grad_(False)
    before = hook_count(net)
    with pytest.raises(UsageError, match=r"b\.weight"), watch(net, graph, "taylor-weight"):
        pass
    assert hook_count(net) == before


class Wrapper(nn.Module):
    """A wrapper as distributed and precision wrappers are: the network in ``module``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


def test_a_wrapped_network_is_watched_inside_of_its_wrapper() -> None:
    net = make(Plain)
    inputs, targets = data(4)
    graph = trace(net, inputs)
    wrapped = Wrapper(Wrapper(net))
    with watch(wrapped, graph, "taylor") as watcher:
        F.cross_entropy(wrapped(inputs), targets).backward()
        found = dict(watcher.scores())
    assert_same(found, dict(score(wrapped, graph, "taylor", [(inputs, targets)], F.cross_entropy)))


def test_a_network_set_up_by_fabric_is_watched() -> None:
    from lightning_fabric import Fabric

    net = make(Plain)
    inputs, targets = data(4)
    graph = trace(net, inputs)
    wanted = dict(score(net, graph, "taylor", [(inputs, targets)], F.cross_entropy))
    fabric = Fabric(accelerator="cpu", devices=1)
    module, _ = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
    with watch(module, graph, "taylor") as watcher:
        fabric.backward(F.cross_entropy(module(inputs), targets))
    assert_same(dict(watcher.scores()), wanted)


def test_a_network_of_another_make_is_refused() -> None:
    with pytest.raises(UsageError, match="no module 'b', which the channel graph names"):
        watch(make(Residual), trace(make(Plain), data(2)[0]), "taylor")


def test_inputs_of_another_shape_are_refused_by_name() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2))
    graph = trace(net, torch.zeros(2, 4))
    net[2] = nn.Linear(6, 2)
    net[1] = nn.Linear(4, 6)
    with pytest.raises(UsageError, match="module '2' reads an input of shape"), watch(net, graph):
        net(torch.zeros(2, 4))


def test_seeing_nothing_is_an_error_that_says_what_to_do() -> None:
    net = make(Plain)
    graph = trace(net, data(2)[0])
    for criterion, wanted in (
        ("taylor", "no backward pass"),
        ("taylor-weight", "no backward pass"),
        ("apoz", "no forward pass"),
        ("mutual-information", "no examples with targets"),
    ):
        with watch(net, graph, criterion) as watcher, pytest.raises(UsageError, match=wanted):
            watcher.scores()


def test_criteria_with_passes_of_their_own_cannot_watch() -> None:
    net = make(Plain)
    with pytest.raises(UsageError, match=r"secateur\.score"):
        watch(net, trace(net, data(2)[0]), "obd")


def test_unknown_reduction_and_double_entry_are_refused() -> None:
    net = make(Plain)
    graph = trace(net, data(2)[0])
    with pytest.raises(UsageError, match="reduction is 'mean' or 'sum'"):
        watch(net, graph, reduction="none")  # type: ignore[arg-type]
    watcher = watch(net, graph)
    with watcher, pytest.raises(UsageError, match="collected already"):
        watcher.__enter__()


def test_a_loss_that_is_not_finite_names_group_and_criterion() -> None:
    net = make(Plain)
    inputs, targets = data(3)
    graph = trace(net, inputs)
    with watch(net, graph, "taylor") as watcher:
        (F.cross_entropy(net(inputs), targets) * float("nan")).backward()
    with pytest.raises(UsageError, match="taylor scores of group 'a' are NaN"):
        watcher.scores()


def test_groups_that_nothing_read_are_left_out_with_the_reason() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(3, 4)
            self.head = nn.Linear(4, 2)
            self.hidden = nn.Linear(4, 5)
            self.auxiliary = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            x = torch.tanh(self.stem(x))
            if self.training:
                return self.head(x), self.auxiliary(torch.tanh(self.hidden(x)))
            return self.head(x)

    net, inputs = TwoHeads(), torch.randn(4, 3)
    graph = trace(net, inputs)
    assert {group.name for group in graph.prunable} == {"stem", "hidden"}
    scores = score(net, graph, "taylor", [(inputs, None)], lambda y, _: y.square().mean())
    assert list(scores) == ["stem"]
    assert "nothing that reads its channels ran" in scores.unscored["hidden"]
    net.train()
    with watch(net, graph, "taylor") as watcher:
        one, other = net(inputs)
        (one.square().mean() + other.square().mean()).backward()
    assert set(watcher.scores()) == {"stem", "hidden"}
