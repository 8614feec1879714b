"""Networks that run the same operators in both modes and return something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sec

Returned = Callable[[Tensor, Tensor, bool], Any]


class Returning(nn.Module):
    """Two heads, both computed in both modes."""

    def __init__(self, returned: Returned) -> None:
        super().__init__()
        self.body, self.head, self.other = nn.Linear(6, 16), nn.Linear(16, 4), nn.Linear(16, 3)
        self.returned = [returned]

    def forward(self, x: Tensor) -> Any:
        x = self.body(x).relu()
        return self.returned[0](self.head(x), self.other(x), self.training)


RETURNED: dict[str, tuple[Returned, bool]] = {
    "one more": (lambda y, z, training: (y, z) if training else y, True),
    "list": (lambda y, z, training: [y] if training else y, False),
    "dict": (lambda y, z, training: {"out": y} if training else y, False),
    "none": (lambda y, z, training: (y, None) if training else y, False),
    "number": (lambda y, z, training: (y, 0.5) if training else y, False),
    "twice": (lambda y, z, training: y if training else (y, y), False),
    "other order": (lambda y, z, training: (z, y) if training else (y, z), True),
    "same": (lambda y, z, training: (y, z), True),
}


@pytest.mark.parametrize("name", RETURNED)
def test_the_outputs_of_each_mode_count(name: str) -> None:
    torch.manual_seed(0)
    returned, uses_other = RETURNED[name]
    model, x = Returning(returned).eval(), torch.randn(4, 6)
    graph = sec.trace(model, x)
    assert graph["body"].reason is None
    assert graph["head"].reason == "is an output of the network"
    assert (graph["other"].reason == "is an output of the network") is uses_other
    plan = sec.plan_from(graph, {"body": [0, 3, 9]})
    small = sec.apply_plan(model, plan)
    assert sec.verify(model, small, plan, x).ok
    for training in (False, True):
        assert type(small.train(training)(x)) is type(model.train(training)(x))
