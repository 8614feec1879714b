"""Eliminations compared with refitting by brute force."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from secateur.responses import Elimination, nested_errors


def setting(channels: int, taps: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(channels)
    unknowns = channels * taps
    mixing = torch.randn(unknowns, unknowns, generator=generator, dtype=torch.float64)
    covariance = mixing @ mixing.T / unknowns + 0.01 * torch.eye(unknowns, dtype=torch.float64)
    weight = torch.randn(3, unknowns, generator=generator, dtype=torch.float64)
    order = torch.randperm(unknowns, generator=generator)
    return covariance, weight, order.reshape(channels, taps)


def best_error(covariance: Tensor, weight: Tensor, gone: list[int]) -> float:
    """The least of tr((V − W) H (V − W)ᵀ) over V with zeros where columns are gone."""
    stays = [column for column in range(len(covariance)) if column not in gone]
    best = weight.clone() * 0
    best[:, stays] = torch.linalg.solve(covariance[stays][:, stays], covariance[stays] @ weight.T).T
    difference = best - weight
    return float((difference @ covariance * difference).sum())


@pytest.mark.parametrize("taps", [1, 3])
def test_errors_are_those_of_the_best_refit(taps: int) -> None:
    covariance, weight, columns = setting(5, taps)
    errors = Elimination(covariance, weight, columns, 0.0).errors()
    for channel in range(5):
        assert float(errors[channel]) == pytest.approx(
            best_error(covariance, weight, columns[channel].tolist()), rel=1e-6
        )


def test_errors_go_on_from_what_is_gone() -> None:
    covariance, weight, columns = setting(6, 2)
    part = Elimination(covariance, weight, columns, 0.0)
    part.remove(torch.tensor([4]))
    part.remove(torch.tensor([0, 2]))
    before = best_error(covariance, weight, columns[[4, 0, 2]].ravel().tolist())
    for channel in (1, 3, 5):
        after = best_error(covariance, weight, columns[[4, 0, 2, channel]].ravel().tolist())
        assert float(part.errors()[channel]) == pytest.approx(after - before, rel=1e-6)
    assert torch.isinf(part.errors()[[0, 2, 4]]).all()


def test_the_nested_order_is_the_greedy_one() -> None:
    covariance, weight, columns = setting(6, 2)
    gone: list[int] = []
    while len(gone) < 5:
        others = [channel for channel in range(6) if channel not in gone]
        gone.append(
            min(
                others,
                key=lambda item: best_error(covariance, weight, columns[[*gone, item]].ravel().tolist()),
            )
        )
    found = nested_errors([(Elimination(covariance, weight, columns, 0.0), 1.0)], 6)
    assert found.argsort().tolist()[:5] == gone
    assert bool((found.sort().values.diff() > 0).all())


def test_equal_channels_still_get_an_order() -> None:
    columns = torch.arange(4)[:, None]
    part = Elimination(torch.eye(4), torch.zeros(1, 4), columns, 0.0)
    found = nested_errors([(part, 1.0)], 4).float()
    assert len(found.unique()) == 4
