"""The reconstruction criterion compared with dense least squares on the data."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.criteria import ReconstructionError, score
from secateur.graph import trace


def share_missed(x: Tensor, y: Tensor) -> float:
    """What dense least squares with a constant leaves of the responses, as a share of their energy."""
    ones = torch.ones(len(x), 1, dtype=x.dtype)
    left = torch.cat([x, ones], 1)
    missed = y - left @ torch.linalg.lstsq(left, y, driver="gelsd").solution
    return float(missed.square().sum() / (y - y.mean(0)).square().sum())


def conv_rows(net: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor]:
    """Patches of the last layer, shape (R, C, taps), and its responses."""
    with torch.no_grad():
        read = net[1](net[0](x))
        patches = F.unfold(read, 3).transpose(1, 2).flatten(0, 1)
        return patches.reshape(len(patches), read.shape[1], -1), net[2](read).permute(0, 2, 3, 1).flatten(
            0, 2
        )


@pytest.fixture
def case() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3)).double().eval()
    return net, torch.randn(12, 3, 9, 9, dtype=torch.float64)


def test_a_single_score_is_the_error_after_the_best_refit(case: tuple[nn.Sequential, Tensor]) -> None:
    net, x = case
    criterion = ReconstructionError(ridge=0.0, nested=False)
    scores = score(net, trace(net, x), criterion, [x[:5], x[5:]])["0"]
    patches, wanted = conv_rows(net, x)
    for channel in range(5):
        others = [item for item in range(5) if item != channel]
        expected = share_missed(patches[:, others].flatten(1), wanted)
        assert float(scores[channel]) == pytest.approx(expected, rel=1e-4)


def test_nested_scores_are_the_steps_of_greedy_removal(case: tuple[nn.Sequential, Tensor]) -> None:
    net, x = case
    scores = score(net, trace(net, x), ReconstructionError(ridge=0.0), [x])["0"]
    patches, wanted = conv_rows(net, x)
    left, before, highest = list(range(5)), 0.0, 0.0
    for channel in scores.argsort().tolist()[:-1]:
        costs = {
            item: share_missed(patches[:, [other for other in left if other != item]].flatten(1), wanted)
            for item in left
        }
        assert channel == min(costs, key=costs.__getitem__)
        highest = max(highest, costs[channel] - before)
        assert float(scores[channel]) == pytest.approx(highest, rel=1e-4)
        left.remove(channel)
        before = costs[channel]


def test_readers_add_up_and_linear_layers_take_all_positions_of_a_channel() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), nn.Linear(4 * 4, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = torch.sigmoid(self.stem(x))
            return self.conv(y), self.fc(y.flatten(1))

    torch.manual_seed(0)
    net, x = Net().double().eval(), torch.randn(90, 3, 4, 4, dtype=torch.float64)
    criterion = ReconstructionError(ridge=0.0, nested=False)
    scores = score(net, trace(net, x), criterion, [x])["stem"]
    with torch.no_grad():
        read = torch.sigmoid(net.stem(x))
        small, wide = (item.detach() for item in net(x))
    for channel in range(4):
        others = [item for item in range(4) if item != channel]
        pointwise = read[:, others].permute(0, 2, 3, 1).flatten(0, 2)
        expected = share_missed(pointwise, small.permute(0, 2, 3, 1).flatten(0, 2))
        expected += share_missed(read[:, others].flatten(1), wide)
        assert float(scores[channel]) == pytest.approx(expected, rel=1e-4)


def test_what_has_no_window_is_left_out_with_the_reason() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 1), nn.ConvTranspose2d(6, 3, 2)).eval()
    x = torch.randn(2, 3, 6, 6)
    scores = score(net, trace(net, x), "reconstruction", [x])
    assert set(scores) == {"0"}
    assert "neither a convolution nor a linear layer" in scores.unscored["1"]


def test_inputs_of_a_consumer_that_is_too_wide_are_taken_as_uncorrelated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("secateur.criteria.reconstruction._LARGEST", 4)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(60, 3, dtype=torch.float64)
    scores = score(net, trace(net, x), ReconstructionError(), [x[:20], x[20:]])
    with torch.no_grad():
        read = net[:2](x)
    energies = read.var(0, correction=0) * net[2].weight.detach().square().sum(0)
    assert torch.allclose(scores["0"].double(), energies / energies.sum(), rtol=1e-5)
    assert scores["0"].argsort().tolist() == energies.argsort().tolist()
    monkeypatch.undo()
    assert torch.equal(scores["2"], score(net, trace(net, x), ReconstructionError(), [x[:20], x[20:]])["2"])


def test_memory_of_moments_is_limited_for_all_consumers_of_a_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.criteria.reconstruction._BYTES", 8 * (4**2 + 6**2))
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)).double()
    x = torch.randn(60, 3, dtype=torch.float64)
    few = score(net, trace(net, x), "reconstruction", [x])
    monkeypatch.undo()
    full = score(net, trace(net, x), "reconstruction", [x])
    assert [torch.equal(few[name], full[name]) for name in ("0", "1", "2")] == [True, False, False]
