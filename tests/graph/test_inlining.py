from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateur as sec


class Modes(nn.Module):
    """Regions within regions: the operators inside are cut like all others."""

    def __init__(self, *, enabled: bool) -> None:
        super().__init__()
        self.enabled = enabled
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=self.enabled, dtype=torch.bfloat16):
            y = self.a(x)
            with torch.no_grad():
                scale = y.detach().abs().mean(0)
            y = y.relu() * scale
            z = self.b(y.bfloat16() if self.enabled else y)
        return self.c(z.float().relu() + z.float())


@pytest.mark.parametrize("enabled", [False, True])
def test_what_runs_in_a_region_is_cut_like_everything_else(enabled: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, x = Modes(enabled=enabled).eval(), torch.randn(4, 6)
    graph = sec.trace(net, x)
    assert {group.name: group.channels for group in graph.prunable} == {"a": 8, "b": 10}
    plan = sec.plan_from(graph, {"a": [0, 5], "b": [1, 2, 9]})
    small = sec.apply_plan(net, plan)
    with torch.no_grad():
        net.b.weight[:, [0, 5]] = 0
        net.c.weight[:, [1, 2, 9]] = 0
        assert torch.allclose(small(x), net(x), atol=2e-2 if enabled else 1e-6)
    assert sec.cost(small, x) == plan.cost_after


def test_a_network_with_an_autocast_region_is_pruned_and_reconstructed() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, batches = Modes(enabled=True).eval(), [torch.randn(16, 6) for _ in range(2)]
    graph = sec.trace(net, batches[0])
    plan = sec.plan_from(graph, {"a": [0, 5], "b": [1, 2, 9]})
    small = sec.apply_plan(net, plan)
    assert sec.verify(net, small, plan, batches[0]).ok
    before = (small(batches[0]) - net(batches[0])).norm()
    sec.reconstruct(net, small, plan, batches)
    assert (small(batches[0]) - net(batches[0])).norm() < before
