from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import LBFGS, NAdam, Optimizer, RMSprop

import secateur as sec
from secateur.optimizer_state import cut_state

OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, 0.05, momentum=0.9, nesterov=True),
    "adam": lambda params: torch.optim.Adam(params, 0.01, amsgrad=True),
    "adamw": lambda params: torch.optim.AdamW(params, lr=torch.tensor(0.01), foreach=False),
    "rmsprop": lambda params: RMSprop(params, 0.01, momentum=0.9, centered=True),
    "adagrad": lambda params: torch.optim.Adagrad(params, 0.01),
    "nadam": lambda params: NAdam(params, 0.01),
    "adafactor": lambda params: torch.optim.Adafactor(params, 0.01),
    "radam": lambda params: torch.optim.RAdam(params, 0.01),
    "adamax": lambda params: torch.optim.Adamax(params, 0.01),
    "asgd": lambda params: torch.optim.ASGD(params, 0.01),
    "rprop": lambda params: torch.optim.Rprop(params, 0.01),
    "adadelta": lambda params: torch.optim.Adadelta(params, 0.01),
}


def net() -> nn.Sequential:
    """Two square layers, of which one is cut at both sides."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3)
    )


KEPT = {"0": [0, 2, 3, 4, 6, 7], "2": [1, 2, 3, 5, 7], "4": [0, 1, 2, 3, 5, 6, 8, 9, 10]}
X = torch.randn(5, 6, generator=torch.Generator().manual_seed(3))


def plan_for(model: nn.Module) -> sec.PruningPlan:
    return sec.PruningPlan(sec.trace(model, X), {name: tuple(kept) for name, kept in KEPT.items()})


def step(model: nn.Module, optimizer: Optimizer) -> None:
    def loss() -> Tensor:
        optimizer.zero_grad()
        value: Tensor = model(X).square().mean()
        value.backward()
        return value

    optimizer.step(loss)


def rows_and_columns(name: str) -> tuple[list[int], list[int]]:
    layer, kind = name.split(".")
    rows = KEPT.get(layer, list(range(3)))
    columns = KEPT.get(str(int(layer) - 2), list(range(6)))
    return rows, columns if kind == "weight" else []


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_optimizer_of_torch_goes_on_with_its_state(kind: str, inplace: bool):
    """The state after the cut, against positions taken by hand."""
    model = net()
    optimizer = OPTIMIZERS[kind](model.parameters())
    step(model, optimizer)
    step(model, optimizer)
    before = {name: dict(optimizer.state[p]) for name, p in model.named_parameters()}
    shapes = {name: p.shape for name, p in model.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = sec.apply_plan(model, plan_for(model), optimizer=optimizer, inplace=inplace)
    assert len(optimizer.state) == len(shapes)
    for name, parameter in small.named_parameters():
        rows, columns = rows_and_columns(name)
        assert optimizer.state[parameter].keys() == before[name].keys()
        for key, value in optimizer.state[parameter].items():
            old = before[name][key]
            if not isinstance(old, Tensor) or old.numel() == 1:
                assert value is old
                continue
            expected = old if old.shape[0] == 1 else old[rows]
            if old.dim() == 2 and old.shape[1] != 1:
                expected = expected[:, columns]
            assert torch.equal(value, expected)
    step(small, optimizer)
    assert all(bool(p.isfinite().all()) for p in small.parameters())


@pytest.mark.parametrize("inplace", [True, False])
def test_vectors_over_all_parameters_start_anew(inplace: bool):
    model = net()
    optimizer = LBFGS(model.parameters(), lr=0.1, max_iter=3)
    step(model, optimizer)
    plan = plan_for(model)
    with pytest.warns(UserWarning, match=r"'0\.weight' \(key 'd'\).*starts again"):
        small = sec.apply_plan(model, plan, optimizer=optimizer, inplace=inplace)
    weight = small[4].weight.detach().clone()
    step(small, optimizer)
    assert not torch.equal(weight, small[4].weight)


class Odd(Optimizer):
    """Keeps what the step needs in nested containers; every step checks that sizes fit."""

    def __init__(self, params: Iterable[nn.Parameter], make: Callable[[Tensor], Any]) -> None:
        super().__init__(params, {"lr": 0.1})
        self.make = make

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> None:  # type: ignore[override]
        if closure is not None:
            with torch.enable_grad():
                closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state.update(self.make(parameter))
                expected = self.make(parameter)
                assert torch.utils._pytree.tree_map(lambda leaf: getattr(leaf, "shape", None), state) == (
                    torch.utils._pytree.tree_map(lambda leaf: getattr(leaf, "shape", None), expected)
                )
                parameter.sub_(parameter.grad, alpha=group["lr"])


def nested(parameter: Tensor) -> dict[str, Any]:
    return {
        "step": 1,
        "name": "odd",
        "nothing": None,
        "moments": [torch.rand_like(parameter), (torch.rand_like(parameter), torch.tensor(2.0))],
        "rows": {"mean": parameter.detach().flatten(1).mean(1) if parameter.dim() > 1 else torch.zeros(())},
    }


@pytest.mark.parametrize("inplace", [True, False])
def test_nested_state_is_cut_where_it_lies(inplace: bool):
    model = net()
    optimizer = Odd(model.parameters(), nested)
    step(model, optimizer)
    before = copy.deepcopy([optimizer.state[p] for p in model.parameters()])
    small = sec.apply_plan(model, plan_for(model), optimizer=optimizer, inplace=inplace)
    for (name, parameter), old in zip(small.named_parameters(), before, strict=True):
        rows, columns = rows_and_columns(name)
        state = optimizer.state[parameter]
        for new, whole in (
            (state["moments"][0], old["moments"][0]),
            (state["moments"][1][0], old["moments"][1][0]),
        ):
            assert torch.equal(new, whole[rows][:, columns] if columns else whole[rows])
        # The square layer alone would not tell rows from columns; the others do.
        assert torch.equal(state["rows"]["mean"], old["rows"]["mean"][rows] if columns else torch.zeros(()))
        assert (state["step"], state["name"], state["nothing"]) == (1, "odd", None)
    step(small, optimizer)


def shampoo(parameter: Tensor) -> dict[str, Any]:
    return {"momentum": torch.zeros_like(parameter), "factors": [torch.eye(n) for n in parameter.shape]}


def blockwise(parameter: Tensor) -> dict[str, Any]:
    codes = torch.zeros(parameter.shape, dtype=torch.uint8)
    return {"codes": codes, "largest": torch.ones(-(-parameter.numel() // 5)), "map": torch.zeros(256)}


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("make", [shampoo, blockwise])
def test_state_of_which_the_shape_says_nothing_starts_anew_with_a_warning(
    make: Callable[[Tensor], Any], inplace: bool
):
    model = net()
    optimizer = Odd(model.parameters(), make)
    step(model, optimizer)
    plan = plan_for(model)
    with pytest.warns(UserWarning, match=r"'0\.weight' \(key '(factors.0|largest)'\).*starts again"):
        small = sec.apply_plan(model, plan, optimizer=optimizer, inplace=inplace)
    step(small, optimizer)


def test_a_default_dictionary_gains_no_entries():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert isinstance(optimizer.state, defaultdict)
    cut_state(optimizer, dict(model.named_parameters()), {"0.weight": {}})
    sec.apply_plan(model, plan_for(model), optimizer=optimizer, inplace=True)
    assert len(optimizer.state) == 0


def test_a_warning_that_is_an_error_leaves_everything_as_it_was():
    model = net()
    optimizer = Odd(model.parameters(), shampoo)
    step(model, optimizer)
    plan = plan_for(model)
    entry = optimizer.state[model[0].weight]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning):
            sec.apply_plan(model, plan, optimizer=optimizer, inplace=True)
    assert optimizer.state[model[0].weight] is entry
    assert model[0].out_features == 8


@pytest.mark.parametrize("inplace", [True, False])
def test_an_optimizer_of_some_parameters_is_fine_and_of_none_is_refused(inplace: bool):
    model = net()
    plan = plan_for(model)
    part = torch.optim.SGD(model[4].parameters(), 0.1, momentum=0.9)
    foreign = torch.optim.SGD(net().parameters(), 0.1)
    with pytest.raises(sec.UsageError, match="SGD contains none of the parameters of Sequential"):
        sec.apply_plan(model, plan, optimizer=foreign, inplace=inplace)
    assert model[0].out_features == 8
    step(model, part)
    small = sec.apply_plan(model, plan, optimizer=part, inplace=inplace)
    assert {id(p) for p in part.param_groups[0]["params"]} == {id(p) for p in small[4].parameters()}
    step(small, part)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), shape=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_reduced_state_is_what_the_reduction_of_a_cut_parameter_would_be(
    data: st.DataObject, shape: list[int]
):
    """A sum that keeps its dimensions commutes with cutting the dimensions that are left."""
    parameter = nn.Parameter(torch.rand(shape, dtype=torch.float64))
    reduced = sorted(data.draw(st.sets(st.integers(0, len(shape) - 1), max_size=len(shape) - 1)))
    optimizer = torch.optim.SGD([parameter], 0.1)
    sums = parameter.detach().amax(reduced, keepdim=True) if reduced else parameter.detach().clone()
    optimizer.state[parameter]["sums"] = sums
    cut_dims = [dim for dim in range(len(shape)) if shape[dim] > 1 and dim not in reduced]
    kept = {
        dim: torch.tensor(sorted(data.draw(st.sets(st.integers(0, shape[dim] - 1), min_size=1)))).numpy()
        for dim in cut_dims
    }
    result = cut_state(optimizer, {"p": parameter}, {"p": kept})
    expected = sums
    for dim, positions in kept.items():
        expected = expected.index_select(dim, torch.from_numpy(positions))
    found = result.entries.get(parameter, optimizer.state[parameter])["sums"]
    assert torch.equal(found, expected)
    assert not result.reset
