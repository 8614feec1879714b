from __future__ import annotations

import numpy as np
import torch
from torch import nn

from secateur.graph import trace
from secateur.graph.capture.program import capture
from secateur.plan import PruningPlan
from secateur.surgery import apply_plan


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(10 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.cat([self.one(x), self.two(x)], 1).relu()
        return self.head(torch.max_pool2d(both, 2).flatten(1))


def test_sizes_are_those_of_the_network_after_the_cut() -> None:
    net, x = Net(), torch.zeros(2, 3, 6, 6)
    graph = trace(net, x)
    plan = PruningPlan(graph, {"one": (0, 3, 4), "two": (1,)})
    extents = graph.wiring.extents
    for widths, program in (
        (graph.widths, graph.wiring.program),
        (plan.widths, capture(apply_plan(net, plan), x)),
    ):
        sizes = extents.sizes(widths)
        seen = 0
        for node in program.graph.nodes:
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor) and node.name in extents.of:
                (dims,) = extents.of[node.name]
                assert sizes[list(dims)].tolist() == list(value.shape), node.name
                seen += 1
        assert seen >= 8
    assert extents.sizes(np.stack([graph.widths] * 3)).shape == (3, len(extents.constants))
