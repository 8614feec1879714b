"""Places outside of a network to which its code writes: all are as before after a trace."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import ContextVar
from functools import singledispatch, singledispatchmethod
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sec
import tests.graph
from secateur.code_state import code_state
from tests.graph import imported_late as elsewhere

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))

TABLE: dict[int, Tensor] = {}
PAIR: tuple[dict[int, Tensor], list[Any]] = ({}, [])
REPLACED: dict[str, Any] = {}
LAST: Any = torch.zeros(1)
WRITTEN = torch.zeros(4, 1)
GRADIENTS: list[Tensor] = []
HELPER = nn.BatchNorm1d(12)
SET: ContextVar[Any] = ContextVar("set")
SET.set(WRITTEN)
UNSET: ContextVar[Any] = ContextVar("unset", default=None)
FILLED: ContextVar[dict[int, Tensor]] = ContextVar("filled")
FILLED.set({})
BY_NUMBER: dict[int, Tensor] = {}
BY_METHOD: dict[int, Tensor] = {}


def row(length: int) -> Tensor:
    return torch.linspace(0.5, 1, length)[:, None]


def looked_up(length: int) -> Tensor:
    return TABLE.setdefault(length, row(length))


def in_a_tuple(length: int) -> Tensor:
    return PAIR[0].setdefault(length, row(length))


def on_itself(length: int) -> Tensor:
    if not hasattr(on_itself, "kept"):
        on_itself.kept = row(length)
    return on_itself.kept  # type: ignore[no-any-return]


def new_global(length: int) -> Tensor:
    global MADE  # noqa: PLW0603
    if "MADE" not in globals():
        MADE = row(length)
    return MADE


def replaced(length: int) -> Tensor:
    global REPLACED, LAST  # noqa: PLW0603
    REPLACED = {**REPLACED, "row": row(length)}
    LAST = row(length)
    return LAST  # type: ignore[no-any-return]


def written(length: int) -> Tensor:
    WRITTEN.add_(1)
    return row(length)


@singledispatch
def dispatched(length: Any) -> Tensor:
    raise TypeError(length)


@dispatched.register
def _(length: int) -> Tensor:
    return BY_NUMBER.setdefault(length, row(length))


class Dispatching:
    """Chooses its method by the type of the argument."""

    @singledispatchmethod
    def of(self, length: Any) -> Tensor:
        raise TypeError(length)

    @of.register
    def _(self, length: int) -> Tensor:
        return BY_METHOD.setdefault(length, row(length))


dispatching = Dispatching()


def in_contexts(length: int) -> Tensor:
    for variable in (SET, UNSET):
        variable.set(row(length))
    return FILLED.get().setdefault(length, row(length))


def imports_function(length: int) -> Tensor:
    from tests.graph.imported_late import looked_up

    return looked_up(length)


def imports_table(length: int) -> Tensor:
    from .imported_late import OTHER

    return OTHER.setdefault(length, row(length))


def imports_module(length: int) -> Tensor:
    import tests.graph.imported_late as late

    return late.OTHER.setdefault(length, row(length))


def imports_from_package(length: int) -> Tensor:
    from tests.graph import imported_late as late

    return late.OTHER.setdefault(length, row(length))


def by_package(length: int) -> Tensor:
    return tests.graph.imported_late.OTHER.setdefault(length, row(length))


def globals_by_name(length: int) -> Tensor:
    return globals().setdefault("BY_NAME", row(length))  # type: ignore[no-any-return]


def globals_by_number(length: int) -> Tensor:
    globals()[f"LAST_{length}"] = row(length)
    globals()["LA" + "ST"] = row(length)
    return globals()[f"LAST_{length}"]  # type: ignore[no-any-return]


class Rows:
    """A plain object that is called."""

    def __call__(self, length: int) -> Tensor:
        return looked_up(length)


rows = Rows()


class Kept:
    """An object that keeps a table, as an attribute of a class."""

    def __init__(self) -> None:
        self.table: dict[int, Tensor] = {}

    def of(self, length: int) -> Tensor:
        return self.table.setdefault(length, row(length))


class Noted(torch.autograd.Function):
    """Notes the gradients that pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        note(gradients[0])
        return gradients[0]


def note(gradient: Tensor) -> None:
    GRADIENTS.append(gradient)


class Net(nn.Module):
    """Multiplies by a row of numbers that it finds in some way."""

    kept = Kept()

    def __init__(self, way: str) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 4)
        self.way = way
        self.row: Tensor | None = None
        if way == "hook":
            self.a.register_forward_hook(lambda module, inputs, output: self.by_hook(output))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.way == "hook":
            return self.b(h)
        if self.way == "autograd":
            return self.b(Noted.apply(h))
        if self.way == "module":
            return self.b(HELPER(h))
        return self.b(h * (self.by_property if self.way == "property" else WAYS[self.way](self, len(h))))

    def by_hook(self, h: Tensor) -> Tensor:
        return h * looked_up(len(h))

    def by_name(self, length: int) -> Tensor:
        return looked_up(length)

    @property
    def by_property(self) -> Tensor:
        return looked_up(4)


class Named(Net):
    """Finds its method by a name that it computes."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h * getattr(self, f"by_{self.way}")(len(h)))


WAYS: dict[str, Callable[[Net, int], Tensor]] = {
    "function": lambda _, length: looked_up(length),
    "tuple": lambda _, length: in_a_tuple(length),
    "attribute of a function": lambda _, length: on_itself(length),
    "new global": lambda _, length: new_global(length),
    "replaced globals": lambda _, length: replaced(length),
    "written tensor": lambda _, length: written(length),
    "called object": lambda _, length: rows(length),
    "object of a class": lambda net, length: net.kept.of(length),
    "dispatched function": lambda _, length: dispatched(length),
    "dispatched method": lambda _, length: dispatching.of(length),
    "context variables": lambda _, length: in_contexts(length),
    "imported function": lambda _, length: imports_function(length),
    "imported table": lambda _, length: imports_table(length),
    "imported module": lambda _, length: imports_module(length),
    "imported from a package": lambda _, length: imports_from_package(length),
    "module of a package": lambda _, length: by_package(length),
    "globals by a name": lambda _, length: globals_by_name(length),
    "globals by a computed name": lambda _, length: globals_by_number(length),
}


def places() -> SimpleNamespace:
    """What the networks of this file may change."""
    return SimpleNamespace(
        table=dict(TABLE),
        pair=(dict(PAIR[0]), list(PAIR[1])),
        replaced=REPLACED,
        items=dict(REPLACED),
        last=LAST,
        written=WRITTEN.clone(),
        gradients=list(GRADIENTS),
        made=globals().get("MADE"),
        own=vars(on_itself).copy(),
        helper=[item.clone() for item in HELPER.buffers()],
        kept=dict(Net.kept.table),
        dispatched=(dict(BY_NUMBER), dict(BY_METHOD)),
        contexts=(SET.get(), UNSET.get(), dict(FILLED.get())),
        imported=(dict(elsewhere.TABLE), dict(elsewhere.OTHER)),
        names=list(globals()),
    )


def same(before: SimpleNamespace, after: SimpleNamespace) -> None:
    assert before.replaced is after.replaced
    assert before.last is after.last
    for name, value in vars(before).items():
        found = getattr(after, name)
        if name == "helper":
            assert all(map(torch.equal, value, found))
        elif isinstance(value, Tensor):
            assert torch.equal(value, found), name
        else:
            assert value == found, name


@pytest.mark.parametrize("way", [*WAYS, "hook", "property", "autograd", "module", "name"])
def test_every_place_is_as_before(way: str) -> None:
    net = Named(way) if way == "name" else Net(way)
    before = places()
    graph = sec.trace(net, X)
    same(before, places())
    assert graph["a"].reason is None or way == "module"  # the other module is no part of the network
    if way != "module":
        plan = sec.plan_from(graph, {"a": [0, 5]})
        assert sec.verify(net, sec.apply_plan(net, plan), plan, X).ok
        same(before, places())


def test_a_file_that_is_imported_later_is_seen_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def imports(length: int) -> Any:
        import made_later  # type: ignore[import-not-found]

        return made_later.table[length]

    assert code_state(imports).missing == {"made_later"}
    file = ModuleType("made_later")
    vars(file)["table"] = {}
    monkeypatch.setitem(sys.modules, "made_later", file)
    found = [name for variables in code_state(imports).variables for _, name in variables.found()]
    assert "table" in found
    assert not code_state(imports).missing


def test_what_cannot_be_put_back_is_named() -> None:
    bare: ContextVar[Tensor | None] = ContextVar("bare")

    class Bare(Net):
        def forward(self, x: Tensor) -> Tensor:
            if bare.get(None) is None:
                bare.set(row(len(x)))
            return self.b(self.a(x) * bare.get())

    with pytest.raises(sec.TraceError, match="keeps a tensor of an earlier pass .* context variable"):
        sec.trace(Bare(""), X)
