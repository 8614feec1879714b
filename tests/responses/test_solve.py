"""Fits compared with dense least squares on the data themselves, the ridge written as further rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from secateur.responses import Moments, fit_dual, fit_moments, fit_restricted, fit_rows_restricted


def dense(x: Tensor, y: Tensor, old: Tensor, ridge: float, constant: bool) -> tuple[Tensor, Tensor]:
    """min ‖y − x wᵀ − b‖² / R + λ ‖w − old‖² by ``torch.linalg.lstsq``."""
    rows, unknowns = x.shape
    centred = x - x.mean(0) if constant else x
    strength = (ridge * centred.square().sum() / unknowns).sqrt()
    ones = torch.full((rows, 1), float(constant), dtype=x.dtype)
    pull = torch.cat([torch.eye(unknowns, dtype=x.dtype) * strength, torch.zeros(unknowns, 1)], 1)
    left = torch.cat([torch.cat([x, ones], 1), pull])
    right = torch.cat([y, old.T * strength])
    solution = torch.linalg.lstsq(left, right, driver="gelsd").solution
    return solution[:-1].T, solution[-1]


def problem(rows: int, unknowns: int, groups: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(groups, rows, unknowns, generator=generator, dtype=torch.float64) + 3
    y = torch.randn(groups, rows, 4, generator=generator, dtype=torch.float64) + x[..., :1]
    return x, y, torch.randn(groups, 4, unknowns, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("ridge", [0.0, 1e-3, 1.0])
def test_moments_give_the_dense_solution(ridge: float, constant: bool) -> None:
    x, y, old = problem(60, 7)
    moments = Moments()
    for part in (slice(0, 11), slice(11, 12), slice(12, 60)):
        moments.add(x[:, part], y[:, part])
    fit = fit_moments(moments, old, ridge, constant=constant)
    for group in range(2):
        weight, shift = dense(x[group], y[group], old[group], ridge, constant)
        assert torch.allclose(fit.weight[group], weight, atol=1e-8)
        assert torch.allclose(fit.constant[group], shift * constant, atol=1e-7)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("rows", [5, 40])
def test_the_dual_form_gives_the_dense_solution(rows: int, constant: bool) -> None:
    x, y, old = problem(rows, 12)
    fit = fit_dual(x, y, old, 0.01, constant=constant)
    for group in range(2):
        weight, shift = dense(x[group], y[group], old[group], 0.01, constant)
        assert torch.allclose(fit.weight[group], weight, atol=1e-8)
        assert torch.allclose(fit.constant[group], shift * constant, atol=1e-7)


def test_the_errors_are_those_of_the_data() -> None:
    x, y, old = problem(50, 6, groups=1)
    moments = Moments()
    moments.add(x, y)
    fits = [fit_moments(moments, old, 1e-2), fit_dual(x, y, old, 1e-2)]
    for fit in fits:
        energy = (y - y.mean(1, keepdim=True)).square().sum()
        missed = y - x @ fit.weight.mT - fit.constant[:, None]
        before = y - x @ old.mT
        before = before - before.mean(1, keepdim=True)
        assert fit.error == pytest.approx(float(missed.square().sum() / energy))
        assert fit.error_before == pytest.approx(float(before.square().sum() / energy))
        assert fit.error < fit.error_before


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize(("rows", "dual"), [(60, False), (60, True), (5, True)])
def test_some_columns_answer_for_all_without_reading_data_again(
    rows: int, dual: bool, constant: bool
) -> None:
    x, _, weight = problem(rows, 7)
    columns = torch.tensor([0, 2, 3, 6])
    if dual:
        fitted, shift = fit_rows_restricted(x, weight, columns, 0.02, constant=constant)
    else:
        moments = Moments()
        moments.add(x, x[..., :0])
        second, _, _ = moments.second(centred=constant)
        fitted, shift = fit_restricted(second, moments.x_mean, weight, columns, 0.02, constant=constant)
    for group in range(2):
        wanted = x[group] @ weight[group].T
        expected, offset = dense(x[group][:, columns], wanted, weight[group][:, columns], 0.02, constant)
        assert torch.allclose(fitted[group], expected, atol=1e-8)
        assert torch.allclose(shift[group], offset * constant, atol=1e-7)


def test_large_means_cost_no_precision_in_float32() -> None:
    x = torch.randn(1, 4000, 3, generator=torch.Generator().manual_seed(1)) + 1000
    true = torch.tensor([[[1.0, -2.0, 0.5]]])
    moments = Moments()
    for part in x.split(500, 1):
        moments.add(part, (part.double() @ true.double().mT).float())
    assert torch.allclose(fit_moments(moments, true * 0, 0.0).weight.float(), true, atol=1e-3)


def test_a_singular_problem_without_ridge_is_still_solved() -> None:
    x = torch.ones(1, 10, 2, dtype=torch.float64)
    moments = Moments()
    moments.add(x, x[..., :1] * 4)
    fit = fit_moments(moments, torch.zeros(1, 1, 2), 0.0, constant=False)
    assert torch.allclose(fit.weight, torch.full((1, 1, 2), 2.0, dtype=torch.float64))
