"""Costs where the code picks rows of a table: predicted, counted and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateur as sec


class Positions(nn.Module):
    """Adds a layer of the first rows of a table, as many as one dimension of the input has."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.into, self.placed, self.out = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(16, 3)
        self.register_buffer("table", torch.randn(7, 6))

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = self.placed(self.table[: x.shape[self.dim]])
        return self.out(self.into(x) + (rows if self.dim else rows[:, None]))


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize(("batch", "length"), [(1, 6), (2, 6), (3, 6), (4, 5), (5, 5), (5, 2)])
def test_rows_of_a_table_are_counted_once_for_all_examples(dim: int, batch: int, length: int) -> None:
    net, x = Positions(dim).eval(), torch.randn(batch, length, 6)
    graph = sec.trace(net, x)
    rows = (batch, length)[dim]

    def by_hand(width: int) -> int:
        return rows * 6 * width + length * (6 * width + width * 3)

    assert graph.cost().macs == sec.cost(net, x).macs == by_hand(16)
    plan = sec.plan_from(graph, {"into": [1, 7]})
    small = sec.apply_plan(net, plan)
    assert graph.after(plan).cost().macs == sec.cost(small, x).macs == by_hand(14)
