"""What runs a network leaves its buffers, objects and random generators as they were, also in float64."""

from __future__ import annotations

import array
import functools
import gc
import random
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sec
from secateur.recovery import recalibrate
from secateur.untouched import untouched

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "batch normalisation": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)),
        (2, 3, 4, 4),
    ),
    "spectral normalisation": (
        lambda: nn.Sequential(
            nn.Linear(3, 8), nn.ReLU(), nn.utils.parametrizations.spectral_norm(nn.Linear(8, 4))
        ),
        (5, 3),
    ),
}


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(before: dict[str, torch.Tensor], model: nn.Module) -> list[str]:
    return [name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NETWORKS)
def test_tracing_and_verifying_change_no_buffer(name: str, dtype: torch.dtype) -> None:
    make, shape = NETWORKS[name]
    model, inputs = make().to(dtype).eval(), torch.randn(shape, dtype=dtype)
    before = state(model)
    graph = sec.trace(model, inputs)
    plan = sec.PruningPlan(graph, {group.name: (0, 1, 2) for group in graph.prunable})
    small = sec.apply_plan(model, plan)
    cut = state(small)
    sec.verify(model, small, plan, inputs)
    assert not changed(before, model)
    assert not changed(cut, small)


def test_running_statistics_are_put_back() -> None:
    norm = nn.BatchNorm1d(3)
    before = state(norm)
    with untouched(norm):
        norm(torch.randn(4, 3))
    assert not changed(before, norm)


@dataclass(frozen=True, slots=True)
class Frozen:
    log: list[int]
    generator: np.random.Generator


class Slotted:
    __slots__ = ("calls", "later")

    def __init__(self) -> None:
        self.calls = 0


class Drawing(nn.Module):
    """Draws from random generators that it holds, and writes to objects with slots."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.python = {"nested": [random.Random(1)]}
        self.numpy = Frozen([], np.random.default_rng(2))
        self.old, self.torch = np.random.RandomState(3), torch.Generator().manual_seed(4)
        self.slotted = Slotted()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.slotted.calls += 1
        self.slotted.later = self.slotted.calls
        self.numpy.log.append(1)
        drawn = self.python["nested"][0].random() + self.numpy.generator.random() + self.old.rand()
        return self.b(self.a(x).relu() * (drawn + torch.rand(1, generator=self.torch)))

    def state(self) -> tuple[object, ...]:
        return (
            self.slotted.calls,
            hasattr(self.slotted, "later"),
            list(self.numpy.log),
            self.python["nested"][0].getstate(),
            self.numpy.generator.bit_generator.state["state"],
            self.old.get_state()[1].tolist(),
            self.old.get_state()[2],
            self.torch.get_state().tolist(),
        )


def test_slots_and_random_generators_of_a_network_are_put_back() -> None:
    model, x = Drawing().eval(), torch.randn(5, 6)
    before = model.state()
    graph = sec.trace(model, x)
    assert [group.name for group in graph.prunable] == ["a"]
    sec.cost(model, x)
    sec.measure_latency(model, x, min_runs=1, min_seconds=0)
    sec.score(model, graph, "taylor", [(x, torch.zeros(5, 3))], nn.functional.mse_loss)
    assert model.state() == before


def test_a_network_that_draws_from_its_own_generators_is_checked_wherever_these_are() -> None:
    model, x = Drawing().eval(), torch.randn(5, 6)
    graph = sec.trace(model, x)
    plan = sec.plan_from(graph, {"a": [0, 3]})
    small = sec.apply_plan(model, plan)
    model(x)
    small(x)
    small(x)
    assert sec.verify(model, small, plan, x).ok


@pytest.mark.parametrize("generator", [random.SystemRandom(), np.random.MT19937(5)])
def test_other_kinds_of_generators(generator: object) -> None:
    model = nn.Identity()
    model.generator = generator
    state = getattr(generator, "state", None)
    with untouched(model) as noted:
        noted.seed_generators()
        if isinstance(generator, np.random.MT19937):
            assert generator.state["state"]["key"][1] != state["state"]["key"][1]
    if state is not None:
        np.testing.assert_equal(generator.state, state)


def kept_values(method: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A decorator that keeps results, out of sight of the module."""
    kept = functools.lru_cache(maxsize=None)(method)

    @functools.wraps(method)
    def wrapper(self: nn.Module, size: int) -> torch.Tensor:
        return kept(self, size)

    return wrapper


class KeepsTables(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 8), nn.Linear(8, 4)

    @functools.cache  # noqa: B019 - as networks do it
    def table(self, size: int) -> torch.Tensor:
        return torch.arange(size, dtype=torch.float32)[:, None]

    @kept_values
    def other_table(self, size: int) -> torch.Tensor:
        return torch.ones(size, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(torch.tanh(self.one(x + self.table(len(x)) * self.other_table(len(x)))))


def test_tables_that_methods_keep_are_real_after_a_trace() -> None:
    model, x = KeepsTables().eval(), torch.randn(5, 3)
    expected = model(x)
    graph = sec.trace(model, x)
    plan = sec.plan_from(graph, {"one": [0]})
    assert sec.verify(model, sec.apply_plan(model, plan), plan, x).ok
    assert torch.equal(model(x), expected)
    fresh = KeepsTables().eval()
    sec.trace(fresh, x)
    assert type(fresh.table(5)) is torch.Tensor
    assert not fresh(x).is_meta


def test_what_makes_algorithms_deterministic_is_put_back() -> None:
    enabled, cudnn = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    with untouched():
        torch.use_deterministic_algorithms(not enabled, warn_only=True)
        torch.backends.cudnn.deterministic = not cudnn
    assert torch.are_deterministic_algorithms_enabled() == enabled
    assert torch.is_deterministic_algorithms_warn_only_enabled() is False
    assert torch.backends.cudnn.deterministic == cudnn


def test_copies_are_freed_with_the_record_before_any_collection() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    was_on = gc.isenabled()
    gc.disable()
    try:
        with untouched(model) as record:
            model(torch.rand(4, 3))
            with torch.no_grad():
                model[0].weight.add_(1)
        assert any(tensor is model[0].weight for tensor in record.written)
        alive = weakref.ref(record)
        del record
        assert alive() is None
    finally:
        if was_on:
            gc.enable()


class ClaimsToBeADict:
    """Says that it is a dictionary, as proxies of other objects do."""

    @property
    def __class__(self) -> type:
        return dict

    def __init__(self) -> None:
        self.content = [1]


def test_odd_attributes_do_not_stop_a_trace() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    net.probe = torch.zeros(3, device="meta")
    net.proxy = ClaimsToBeADict()  # type: ignore[assignment]
    assert sec.trace(net, torch.randn(2, 3))["0"].prunable
    assert net.probe.is_meta


NUMBERS, BYTES, WORDS = np.zeros(2), bytearray(b"ab"), array.array("i", [1, 2])


@functools.singledispatch
def halved(x: object) -> object:
    raise TypeError(type(x))


class ChangesEverything(nn.Module):
    """A network whose forward pass writes to arrays, settings, implementations and its input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 4)
        self.count, self.seen, self.codes = np.zeros(1), bytearray(1), array.array("d", [0.0])
        self.masked = np.ma.masked_array([1.0, 2.0], mask=[False, True])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        global NUMBERS, BYTES  # noqa: PLW0602, PLW0603 - what a user's code does
        self.count += 1
        self.seen.append(1)
        self.codes[0] += 1
        self.masked[1] = 5
        NUMBERS[0] += 1
        BYTES += b"c"
        WORDS.append(3)
        halved.register(torch.Tensor, lambda x: x / 2)
        torch.autograd.set_detect_anomaly(True)
        np.seterr(over="ignore")
        x.mul_(0.5)
        return self.b(halved(self.a(x)).relu())


def found(model: ChangesEverything, inputs: torch.Tensor) -> list[object]:
    return [
        *map(list, (model.count, model.seen, model.codes, NUMBERS, BYTES, WORDS, halved.registry)),
        model.masked.mask.tolist(),
        (torch.is_anomaly_enabled(), np.geterr()["over"]),
        inputs.tolist(),
    ]


def test_arrays_settings_implementations_and_batches_are_put_back() -> None:
    model, x = ChangesEverything(), torch.randn(4, 6)
    before = found(model, x)
    graph = sec.trace(model, x)
    assert found(model, x) == before
    plan = sec.plan_from(graph, {"a": [0, 3]})
    small = sec.apply_plan(model, plan)
    assert sec.verify(model, small, plan, x).ok
    assert found(model, x) == before
    sec.score(model, graph, "taylor", [(x, torch.randn(4, 4))], nn.functional.mse_loss)
    assert found(model, x) == before


def test_a_batch_is_left_by_recalibration() -> None:
    class Halves(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.mul_(0.5))

    x = torch.ones(4, 6)
    recalibrate(Halves(nn.BatchNorm1d(6)), [x])
    assert torch.equal(x, torch.ones(4, 6))


class Tabled(nn.Module):
    """Keep a table of the weights in evaluation mode until training begins, as LeViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 3)
        self.bias = nn.Parameter(torch.randn(8, 5))
        self.tables: dict[str, torch.Tensor] = {}

    def train(self, mode: bool = True) -> Tabled:
        if mode and self.tables:
            self.tables = {}
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table = self.bias.sum(1)
        if not self.training:
            table = self.tables.setdefault(str(x.device), table)
        return self.two((self.one(x) + table).relu())


@torch.no_grad()
@pytest.mark.parametrize("inplace", [False, True])
def test_what_evaluation_keeps_until_training_is_dropped_by_a_cut_alone(inplace: bool) -> None:
    torch.manual_seed(0)
    model, x = Tabled().eval(), torch.randn(3, 4)
    expected = model(x)
    tables = model.tables
    graph = sec.trace(model, x)
    assert [group.name for group in graph.prunable] == ["one"]
    assert model.tables is tables
    assert list(tables) == ["cpu"]
    plan = sec.plan_from(graph, {"one": [0, 2, 5]})
    kept = [1, 3, 4, 6, 7]
    silent = model.one.weight[kept] @ x.T + (model.one.bias + model.bias.sum(1))[kept, None]
    wanted = (model.two.weight[:, kept] @ silent.relu()).T + model.two.bias
    small = sec.apply_plan(model, plan, inplace=inplace)
    assert not small.training
    torch.testing.assert_close(small(x), wanted)
    if not inplace:
        assert model.tables is tables
        assert torch.equal(model(x), expected)
        assert sec.verify(model, small, plan, x).ok
