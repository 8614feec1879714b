from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur as sec
from secateur.graph.channel_graph import Keep
from secateur.graph.checking.probe import lively
from secateur.graph.checking.trial_widths import about_half
from secateur.graph.cutting.tensors import named_tensors


@pytest.mark.parametrize("channels", range(2, 40))
def test_what_a_trial_keeps_is_no_mirror_image_of_itself(channels: int) -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        kept = set(about_half(generator, channels))
        assert 1 <= len(kept) < channels
        assert kept != {channels - 1 - channel for channel in kept}
        if channels % 2 == 0:
            assert len(kept) % 2 == 1


class FaintScores(nn.Module):
    """Coordinates beside scores that hardly depend on the input, as in a detector that was never trained."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU())
        self.hidden = nn.Conv2d(8, 6, 1)
        self.boxes, self.scores = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 1, 1)
        with torch.no_grad():
            self.scores.weight.mul_(3e-8)
            self.scores.bias.fill_(-5.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.hidden(x + self.block(x)))
        return torch.cat([500 + 3e-6 * self.boxes(x), self.scores(x).sigmoid()], 1)


def test_weights_are_prepared_for_a_network_without_a_branch() -> None:
    torch.manual_seed(0)
    net, x = FaintScores().eval(), torch.randn(2, 3, 6, 6)
    graph = sec.trace(net, x)
    removed = graph.after(Keep({}, ["block"])).removed
    found = lively(graph.wiring.evaluation, named_tensors(net), x, removed)
    assert found.outputs is not None
    scores = found.outputs.leaves[0][:, 4]
    assert float(scores.std()) > 1e-3
    assert torch.equal(found.tensors["block.1.running_var"], net.block[1].running_var)
    assert not torch.equal(found.tensors["scores.weight"], net.scores.weight)


def test_weights_are_prepared_beside_one_that_is_computed() -> None:
    torch.manual_seed(0)
    first, last = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.Conv2d(8, 4, 3)
    net, x = nn.Sequential(first, nn.ReLU(), last), torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        last.weight.mul_(1e-6)
        last.bias.zero_()
    graph = sec.trace(net, x)
    found = lively(graph.wiring.evaluation, named_tensors(net), x, graph.after(Keep({}, [])).removed)
    assert bool(found.tensors["2.weight"].std() > 1e3 * last.weight.std())
