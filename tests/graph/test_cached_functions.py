"""Functions with ``functools.lru_cache`` in a forward pass: what they keep, and what they are asked."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import secateur as sec

X = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))


@functools.cache
def rotations(length: int, width: int) -> tuple[Tensor, Tensor]:
    """The usual table of rotary positions, kept for each length."""
    angles = torch.outer(torch.arange(length).float(), 1 / 100 ** (torch.arange(0, width, 2) / width))
    return angles.cos(), angles.sin()


@functools.cache
def ramp(length: int) -> Tensor:
    return torch.linspace(0.5, 1, length)[:, None, None]


@functools.cache
def partitions(number: int, largest: int) -> int:
    """A recursion that takes forever without its cache."""
    if number <= 0 or largest == 0:
        return int(number == 0)
    return partitions(number - largest, largest) + partitions(number, largest - 1)


@functools.cache
def split(width: int, size: int) -> tuple[int, int]:
    return width // size, size


class Rotary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.size = 4
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))

    def rotated(self, x: Tensor) -> Tensor:
        cos, sin = rotations(x.shape[-2], self.size)
        left, right = x.chunk(2, -1)
        return torch.cat([left * cos - right * sin, left * sin + right * cos], -1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            values.unflatten(-1, split(values.shape[-1], self.size)).transpose(1, 2)
            for values in (self.q(x), self.k(x), self.v(x))
        )
        found = scaled_dot_product_attention(self.rotated(q), self.rotated(k), v, scale=0.5)
        out: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return out


class Training(nn.Module):
    """A table that only training reads."""

    tables = {"ramp": ramp}

    def __init__(self, way: str) -> None:
        super().__init__()
        self.a, self.b, self.way = nn.Linear(16, 12), nn.Linear(12, 4), way

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(x).relu()
        if self.training:
            table = self.tables["ramp"] if self.way == "held" else ramp
            hidden = hidden * table(len(x))
        out: Tensor = self.b(hidden)
        return out


class Partitions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x).relu() / partitions(len(x) + 150, 150) ** 0.01)
        return out


def test_no_tensor_of_a_trace_stays_in_a_cache() -> None:
    rotations.cache_clear()
    model = Rotary().eval()
    graph = sec.trace(model, X)
    assert [group.name for group in graph.groups if group.prunable] == ["q"]
    assert type(model(X)) is Tensor
    assert type(rotations(6, 4)[0]) is Tensor
    assert rotations(6, 4)[0].dtype == torch.float32


@pytest.mark.parametrize("way", ["by name", "held"])
def test_no_tensor_of_a_training_pass_stays_in_a_cache(way: str) -> None:
    ramp.cache_clear()
    model = Training(way).eval()
    graph = sec.trace(model, X)
    assert graph["a"].prunable
    kept = ramp(len(X))
    assert (type(kept), kept.device.type, kept.dtype) == (Tensor, "cpu", torch.float32)
    assert type(model.train()(X)) is Tensor


def test_a_recursive_function_keeps_its_results() -> None:
    assert sec.trace(Partitions().eval(), X)["a"].prunable
    assert isinstance(partitions, functools._lru_cache_wrapper)


class _Refuses(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


def test_odd_modules_do_not_hide_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = _Refuses("odd_module")
    vars(odd)["kept"] = functools.lru_cache(maxsize=None)(len)
    monkeypatch.setitem(sys.modules, "blocked_module", None)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "odd_module", odd)
    before = split
    assert sec.trace(Rotary().eval(), X)["q"].prunable
    assert split is before


@functools.cache
def said_once(text: str) -> None:
    said.append(text)


said: list[str] = []


def test_a_cache_without_tensors_is_left_alone() -> None:
    class Says(Training):
        def forward(self, x: Tensor) -> Tensor:
            said_once("a warning that is written once")
            return super().forward(x)

    said_once.cache_clear()
    model = Says("by name").eval()
    model(X)
    said.clear()
    sec.trace(model, X)
    info = said_once.cache_info()
    assert info.currsize == 1
    model(X)
    assert said_once.cache_info().hits == info.hits + 1


KEPT: dict[tuple[int, int], Tensor] = {}


def angles(length: int, width: int) -> Tensor:
    return torch.linspace(0.1, 1, length)[:, None] * torch.linspace(1, 2, width)


def by_global(length: int, width: int) -> Tensor:
    if (length, width) not in KEPT:
        KEPT[length, width] = angles(length, width)
    return KEPT[length, width]


def by_default(length: int, width: int, kept: dict[tuple[int, int], Tensor] = {}) -> Tensor:  # noqa: B006
    return kept.setdefault((length, width), angles(length, width))


def remembering(function: Callable[[int, int], Tensor]) -> Callable[[int, int], Tensor]:
    kept: dict[tuple[int, int], Tensor] = {}

    def call(length: int, width: int) -> Tensor:
        if (length, width) not in kept:
            kept[length, width] = function(length, width)
        return kept[length, width]

    return call


by_closure = remembering(angles)


class Tables:
    """Keeps tables, in an object or in the class."""

    shared: ClassVar[dict[tuple[int, int], Tensor]] = {}

    def __init__(self) -> None:
        self.own: dict[tuple[int, int], Tensor] = {}

    def by_object(self, length: int, width: int) -> Tensor:
        return self.own.setdefault((length, width), angles(length, width))

    @classmethod
    def by_class(cls, length: int, width: int) -> Tensor:
        return cls.shared.setdefault((length, width), angles(length, width))

    @staticmethod
    @functools.cache
    def by_method(length: int, width: int) -> Tensor:
        return angles(length, width)


tables = Tables()


class Looked(Rotary):
    """Finds its table through a function, an object or a class that it only refers to."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    @staticmethod
    def by_static(length: int, width: int, kept: dict[Any, Tensor] = {}) -> Tensor:  # noqa: B006
        return kept.setdefault((length, width), angles(length, width))

    def rotated(self, x: Tensor) -> Tensor:
        return x * self.table(x.shape[-2], self.size)

    def table(self, length: int, width: int) -> Tensor:
        if self.way == "global":
            return by_global(length, width)
        if self.way == "default":
            return by_default(length, width)
        if self.way == "closure":
            return by_closure(length, width)
        if self.way == "object":
            return tables.by_object(length, width)
        if self.way == "class":
            return Tables.by_class(length, width)
        if self.way == "method":
            return Tables.by_method(length, width)
        return self.by_static(length, width)


@pytest.mark.parametrize("way", ["global", "default", "closure", "object", "class", "method", "static"])
def test_tables_that_code_keeps_elsewhere_leave_heads_free_and_are_real_after_a_trace(way: str) -> None:
    model = Looked(way).eval()
    graph = sec.trace(model, X)
    assert {group.name: group.channels for group in graph.prunable} == {"q": 4}
    kept = model.table(6, 4)
    assert (type(kept), kept.device.type, kept.dtype) == (Tensor, "cpu", torch.float32)
    assert torch.equal(kept, angles(6, 4))
    plan = sec.plan_from(graph, {"q": [1]})
    assert sec.verify(model, sec.apply_plan(model, plan), plan, X).ok


@pytest.mark.parametrize("way", ["global", "closure", "method"])
def test_a_table_that_an_earlier_pass_left_in_float32_is_no_difference(way: str) -> None:
    model = Looked(way).eval()
    graph = sec.trace(model, X)
    plan = sec.plan_from(graph, {"q": [1]})
    small = sec.apply_plan(model, plan)
    model(X)
    check = sec.verify(model, small, plan, X)
    assert check.ok
    assert check.tolerance < 1e-4
    with torch.no_grad():
        small.out.weight[0, 0] *= 1.001
    assert not sec.verify(model, small, plan, X).ok
