"""Forward passes with the channels innermost in memory come to the same, or are left as they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateur as sec
from secateur.graph.cutting.tensors import named_tensors
from secateur.recovery.captured_forward import CapturedForward, capture_forward
from secateur.recovery.partial_forward import PartialForward, with_channels_innermost


class Pooled(nn.Module):
    """Convolutions, and a mean over places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu()).mean((2, 3))


class Viewed(Pooled):
    """A row of all values, in the order of the dimensions and not of the memory."""

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu()).view(len(x), -1)


class Strided(Pooled):
    """Numbers that depend on how values lie in memory."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x).relu())
        return y.as_strided((y.shape[0], 4), (4 * 16, 1))


def captured(net: nn.Module) -> tuple[CapturedForward, sec.ChannelGraph, dict[str, Tensor]]:
    x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    graph = sec.trace(net, x[:2])
    tensors = {name: tensor.detach() for name, tensor in named_tensors(net).items()}
    return capture_forward(net, graph, [x]), graph, tensors


def is_channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", [Pooled, Viewed])
def test_channels_are_innermost_where_it_comes_to_the_same(kind: type[nn.Module]) -> None:
    forward, graph, tensors = captured(kind().eval())
    changed, inner = with_channels_innermost(forward, tensors)
    assert is_channels_last(changed.chunks[0].leaves[0])
    assert is_channels_last(inner["second.weight"])
    run = PartialForward(changed, graph.removed, inner)
    run.advance(2)
    assert any(is_channels_last(run.value(0, node)) for node in changed.nodes[:2] if run.holds(node)), (
        "values on the way lie like the inputs"
    )
    expected = PartialForward(forward, graph.removed, tensors).outputs()[0]
    torch.testing.assert_close(run.outputs()[0], expected, rtol=1e-5, atol=1e-6)
    assert is_channels_last(forward.chunks[0].leaves[0]) is False


def test_a_program_that_depends_on_the_layout_is_left_as_it_is() -> None:
    forward, _, tensors = captured(Strided().eval())
    assert with_channels_innermost(forward, tensors) == (forward, tensors)


def test_without_kernels_nothing_is_changed() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    x = torch.randn(5, 4)
    forward = capture_forward(net, sec.trace(net, x), [x])
    tensors = {name: tensor.detach() for name, tensor in named_tensors(net).items()}
    same, kept = with_channels_innermost(forward, tensors)
    assert same is forward
    assert kept is tensors
