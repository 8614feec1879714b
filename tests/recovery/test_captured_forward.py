"""Where memory is short, fewer chunks are used: compared with values counted by hand, and all of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.graph import trace
from secateur.graph.cutting.tensors import named_tensors
from secateur.plan import plan_from
from secateur.recovery import captured_forward, reconstruct
from secateur.recovery.captured_forward import CapturedForward, capture_forward
from secateur.recovery.partial_forward import PartialForward
from secateur.surgery import apply_plan

NET = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(8, 4, 1),
    nn.Flatten(),
    nn.Linear(64, 3),
).eval()
X = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def missing(cut: nn.Module) -> float:
    """Squared distance from the answers of the whole network."""
    with torch.no_grad():
        return float((cut(X) - NET(X)).square().sum())


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> CapturedForward:
    monkeypatch.setattr(captured_forward, "_CHUNK", 4)
    return capture_forward(NET, trace(NET, X[:2]), [X])


def test_large_values_allow_few_chunks_and_later_steps_never_fewer(small_chunks: CapturedForward) -> None:
    # 4 examples of 8 channels of 64 floats: 8,192 bytes; the ReLU holds its input and its result.
    widest = 2 * 4 * 8 * 64 * 4
    assert len(small_chunks.chunks) == 8
    assert [small_chunks.chunks_within(0, widest * times) for times in (0, 1, 3, 20)] == [1, 1, 3, 8]
    counts = [small_chunks.chunks_within(step, widest) for step in range(len(small_chunks.nodes))]
    assert counts == sorted(counts)
    # Behind the pooling: 8 channels of 16 floats and their 4 successors.
    assert counts[3] == widest // (4 * (8 + 4) * 16 * 4)


def test_chunks_that_join_later_have_the_values_of_the_others(
    small_chunks: CapturedForward,
) -> None:
    tensors = named_tensors(NET)
    graph = trace(NET, X[:2])
    run = PartialForward(small_chunks, graph.removed, tensors)
    run.advance(2, 2)
    assert len(run.chunks) == 2
    run.advance(4)
    node = small_chunks.nodes[3]
    values = torch.cat([run.value(number, node) for number in range(8)])
    assert torch.allclose(values, NET[:4](X), atol=1e-6)


def test_little_memory_gives_nearly_the_same_fit(small_chunks: CapturedForward) -> None:
    graph = trace(NET, X[:2])
    plan = plan_from(graph, {"0": [1, 5, 6]})
    errors = []
    for memory in (1, 2 << 30):
        cut = apply_plan(NET, plan)
        before = missing(cut)
        fits = reconstruct(NET, cut, plan, [X], memory=memory)
        errors.append(missing(cut) / before)
        assert [fit.module for fit in fits] == ["3", "5"]
    assert errors[1] < errors[0] < 1
