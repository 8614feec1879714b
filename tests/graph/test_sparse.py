"""Networks with sparse buffers, inputs and outputs, such as graph convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateur as sec

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
EDGES = torch.eye(5).roll(1, 0) + torch.eye(5)
LAYOUTS = {"coordinates": Tensor.to_sparse, "compressed rows": Tensor.to_sparse_csr}


class GraphConvolutions(nn.Module):
    """Two layers that add up neighbours; the graph is a buffer, or an input."""

    def __init__(self, edges: Tensor | None) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 12), nn.Linear(12, 4)
        self.register_buffer("edges", edges)

    def forward(self, x: Tensor, edges: Tensor | None = None) -> Tensor:
        edges = self.edges if edges is None else edges
        return torch.sparse.mm(edges, self.two(torch.sparse.mm(edges, self.one(x)).relu()))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("given", [False, True])
def test_a_graph_convolution_is_cut(layout: str, given: bool) -> None:
    edges = LAYOUTS[layout](EDGES)
    net = GraphConvolutions(None if given else edges)
    inputs = (X, edges) if given else (X,)
    graph = sec.trace(net, inputs)
    assert [group.name for group in graph.prunable] == ["one"]
    plan = sec.plan_from(graph, {"one": [0, 5, 7]})
    small = sec.apply_plan(net, plan)
    assert sec.verify(net, small, plan, inputs).ok
    with torch.no_grad():
        net.two.weight[:, [0, 5, 7]] = 0
        torch.testing.assert_close(small(*inputs), net(*inputs))
    assert sec.cost(small, inputs) == plan.cost_after


def test_a_sparse_output_is_compared() -> None:
    class Sparse(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).to_sparse()

    net = Sparse(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    graph = sec.trace(net, X)
    assert [group.name for group in graph.prunable] == ["0"]
    plan = sec.plan_from(graph, {"0": [1]})
    small = sec.apply_plan(net, plan)
    assert sec.verify(net, small, plan, X).ok
    small[2].weight.data *= 2
    assert not sec.verify(net, small, plan, X).ok
