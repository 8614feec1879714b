"""Code that asks tensors for Python values: what is answered during a capture, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sec
from secateur.errors import TraceError, UsageError
from secateur.graph.sizes.recording import record_run
from secateur.recovery import reconstruct


class Masked(nn.Module):
    """Change what a mask names, if it names anything."""

    def __init__(self, asks: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.one, self.two, self.asks = nn.Linear(4, 8), nn.Linear(8, 3), asks

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = torch.tanh(self.one(x))
        if self.asks(mask):
            x = x * (2 - mask[..., None].to(x.dtype))
        return self.two(x)


ASKS: dict[str, Callable[[Tensor], bool]] = {
    "any": lambda mask: (mask == 0).any(),  # type: ignore[dict-item, return-value]
    "all": lambda mask: not mask.all(),
    "number": lambda mask: int(mask.sum()) < mask.numel(),
    "item": lambda mask: mask.min().item() == 0,
}
X = torch.randn(5, 6, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("name", ["any", "all", "number"])
def test_a_mask_of_equal_values_is_answered(name: str, value: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Masked(ASKS[name]).double().eval()
    x, mask = X.double(), torch.full((5, 6), value, dtype=dtype)
    graph = sec.trace(model, (x, mask))
    plan = sec.plan_from(graph, {"one": [0, 5]})
    small = sec.apply_plan(model, plan)
    with torch.no_grad():
        model.two.weight[:, [0, 5]] = 0.0
        assert torch.allclose(model(x, mask), small(x, mask), atol=1e-12)


@pytest.mark.parametrize("name", ASKS)
def test_other_values_of_such_a_mask_are_refused(name: str) -> None:
    model, mask = Masked(ASKS[name]).eval(), torch.ones(5, 6, dtype=torch.int64)
    graph = sec.trace(model, (X, mask))
    plan = sec.plan_from(graph, {"one": [0, 5]})
    small = sec.apply_plan(model, plan)
    assert sec.verify(model, small, plan, (X, mask)).ok
    mask = mask.clone()
    mask[0, 0] = 0
    message = "input 'mask' must be 1 everywhere, as when the network was traced"
    with pytest.raises(UsageError, match=message):
        sec.verify(model, small, plan, (X, mask))
    with pytest.raises(UsageError, match=message):
        reconstruct(model, small, plan, [{"x": X, "mask": mask}])


@pytest.mark.parametrize("mask", [torch.ones(5, 6), torch.arange(30).view(5, 6) % 2])
def test_masks_that_later_inputs_may_change_are_refused(mask: Tensor) -> None:
    with pytest.raises(TraceError, match="branches on the values of a tensor.*torch.where"):
        sec.trace(Masked(ASKS["any"]).eval(), (X, mask))


class Guarded(nn.Module):
    """Code that bounds numbers which are not finite, in training mode."""

    def __init__(self, found: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.aux, self.two, self.found = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 3), found

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = torch.tanh(self.one(x))
        if not self.training:
            return self.two(x)
        if self.found(x):
            x = torch.clamp(x, -1e4, 1e4)
        return self.two(x), self.aux(x)


@pytest.mark.parametrize(
    "found",
    [
        lambda x: not torch.isfinite(x).all(),
        lambda x: torch.isinf(x).any() or torch.isnan(x).any(),
        lambda x: ~x.isfinite().all(),
    ],
)
def test_finite_numbers_are_taken_to_stay_finite(found: Callable[[Tensor], Tensor]) -> None:
    model = Guarded(found).eval()
    graph = sec.trace(model, X)
    group = graph["one"]
    assert {member.tensor for member in group.members} >= {"aux.weight", "two.weight"}
    plan = sec.plan_from(graph, {"one": [1, 2]})
    assert sec.verify(model, sec.apply_plan(model, plan), plan, X).ok


def test_a_branch_on_other_values_stays_refused() -> None:
    class Branch(Guarded):
        def forward(self, x: Tensor) -> Tensor:
            x = self.one(x)
            return self.two(x if torch.isfinite(x).all() and x.mean() > 0 else -x)

    with pytest.raises(TraceError, match="branches on the values"):
        sec.trace(Branch(lambda x: x).eval(), X)


class Numbered(nn.Module):
    """Attention with sizes of its heads that are numbers in the code."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.size, self.qkv, self.out = width, nn.Linear(4, 60), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            y.reshape(*x.shape[:2], 5, self.size).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1)
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_the_reason_names_sizes_that_are_numbers_in_the_code() -> None:
    class Both(Numbered):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (y.reshape(*x.shape[:2], 5, 4).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))
            return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    advice = "write an attribute, such as self.heads"
    found = {str(sec.trace(make(4).eval(), X)["qkv"].reason) for make in (Both,)}
    assert all(f"the code gives 5 and 4 as numbers (reshape): {advice}" in reason for reason in found)
    reason = str(sec.trace(Numbered(-1).eval(), X)["qkv"].reason)
    assert reason.startswith("the scale of attention depends on the width of a head")
    assert f"for whole heads, the code gives 5 as a number (reshape): {advice}" in reason


class Spared(nn.Module):
    """Hide random steps, drawn by NumPy, and skip a layer at random, as speech networks do in training."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.one, self.layer, self.two = nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.one(x))
        if self.training:
            hidden = np.random.choice(x.shape[1], 2, replace=False)  # noqa: NPY002 - as users' code does
            x = x * (1 - F.one_hot(torch.from_numpy(hidden), x.shape[1]).sum(0)[:, None])
        for _ in range(8):
            if self.training:  # numbers whose amount depends on the width
                x = x + 0.1 * torch.randn_like(x)
            if not self.training or torch.rand([]) > 0.5:
                x = torch.tanh(self.layer(x))
        return self.two(x)


def test_random_choices_are_the_same_in_each_attempt_of_a_capture() -> None:
    torch.manual_seed(0)
    model = Spared().eval()
    graph = sec.trace(model, X)
    assert {group.name: group.reason for group in graph.frozen} == {"two": "is an output of the network"}
    plan = sec.plan_from(graph, {"one": [0, 5, 6], "layer": [1, 2]})
    assert sec.verify(model, sec.apply_plan(model, plan), plan, X).ok


def test_what_is_skipped_at_random_does_not_depend_on_the_width() -> None:
    recorded = [record_run(Spared(width), X, training=True) for width in (8, 3)]
    wide, narrow = ([call.key[:2] for call in seen.calls] for seen in recorded if seen is not None)
    assert wide == narrow
    assert 0 < wide.count(("layer", "linear")) < 8
