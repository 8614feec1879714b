"""Code that writes in place runs in float64 like any other, whatever the dtypes that meet."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import secateur as sec
from secateur.exact import Float64

WRITES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "lerp_": lambda kept, new: kept.lerp_(new, 0.1),
    "lerp_ with a tensor": lambda kept, new: kept.lerp_(new, new.abs()),
    "lerp into out": lambda kept, new: torch.lerp(kept, new, 0.1, out=kept),
    "addcmul_": lambda kept, new: kept.mul_(0.9).addcmul_(new, torch.ones(()), value=0.1),
    "addcdiv_": lambda kept, new: kept.mul_(0.9).addcdiv_(new, torch.ones(()), value=0.1),
    "addmm_": lambda kept, new: kept.addmm_(new, new.t() @ new),
    "scatter_": lambda kept, new: kept.scatter_(0, torch.zeros(1, 4, dtype=torch.long), new[:1]),
    "index_add_": lambda kept, new: kept.index_add_(0, torch.tensor([1]), new[:1]),
    "index_copy_": lambda kept, new: kept.index_copy_(0, torch.tensor([1]), new[:1]),
    "masked_scatter_": lambda kept, new: kept.masked_scatter_(new > 0, new),
    "add_": lambda kept, new: kept.mul_(0.9).add_(new, alpha=0.1),
    "list of tensors": lambda kept, new: torch._foreach_lerp_([kept], [new], 0.1),
}


@pytest.mark.parametrize("dtypes", [(torch.float64, torch.float32), (torch.float32, torch.float64)])
@pytest.mark.parametrize("name", WRITES)
def test_operators_that_write_take_arguments_of_another_dtype(
    name: str, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    kept, new = torch.randn(3, 4).to(dtypes[0]), torch.randn(3, 4).to(dtypes[1])
    expected = kept.double()
    WRITES[name](expected, new.double())
    with Float64() as mode:
        WRITES[name](kept, new)
        seen = kept.dtype
    assert (seen, kept.dtype) == (torch.float64, dtypes[0])
    bound = 1e-12 if kept.dtype is torch.float64 else 1e-5
    assert torch.allclose(kept.double(), expected, rtol=0, atol=bound)
    assert mode.rounded == (dtypes[0] is torch.float32)


class Averaged(nn.Module):
    """A layer, and a moving average of it that the code updates in training."""

    def __init__(self, update: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 4)
        self.ema = copy.deepcopy(self.a).requires_grad_(False)
        nn.init.normal_(self.ema.weight)
        self.update = update

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                for kept, new in zip(self.ema.parameters(), self.a.parameters(), strict=True):
                    self.update(kept, new)
        return self.b(self.a(x).relu() + self.ema(x))


@pytest.mark.parametrize("name", ["lerp_", "lerp into out", "addcmul_", "addcdiv_", "add_"])
def test_a_moving_average_of_a_layer_is_cut_with_it(name: str) -> None:
    model, x = Averaged(WRITES[name]), torch.randn(4, 6)
    kept = model.ema.weight
    before = kept.clone()
    graph = sec.trace(model, x)
    assert graph["a"].prunable, graph["a"].reason
    plan = sec.plan_from(graph, {"a": [0, 3]})
    small = sec.apply_plan(model, plan)
    assert small.ema.weight.shape == (10, 6)
    found = sec.verify(model, small, plan, x)
    assert (found.ok, found.modes) == (True, ("evaluation", "training"))
    assert model.ema.weight is kept
    assert torch.equal(kept, before)
    assert small.ema.weight.dtype is torch.float32
