"""Solve least squares with a ridge penalty on the distance to the old weights.

For patches x, target responses y, old weights W₀ and a constant b that is free or zero, the fit
minimises

    E ‖y − W x − b‖² + λ ‖W − W₀‖²,    λ = ridge · mean of the diagonal of E[x xᵀ],

that is ``W = W₀ + (E[y xᵀ] − W₀ E[x xᵀ]) (E[x xᵀ] + λ 1)⁻¹`` and ``b = E[y] − W E[x]``, where the
moments are centred if b is free. Shapes as in :mod:`secateur.responses.moments`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.responses.moments import Moments


@dataclass(frozen=True)
class FittedWeights:
    """Result of a fit.

    Attributes:
        weight: shape ``(G, O, U)``, float64.
        constant: to be added to the responses, shape ``(G, O)``, float64; zero if it was not fitted.
        error_before: share of the responses' energy that the old weights, with their best
            constant if it is free, miss.
        error: share that the fitted weights miss.
    """

    weight: Tensor
    constant: Tensor
    error_before: float
    error: float


def fit_moments(moments: Moments, old: Tensor, ridge: float, *, constant: bool = True) -> FittedWeights:
    """Fit weights from second moments: for more rows than unknowns.

    Args:
        moments: of patches and target responses.
        old: old weights, shape ``(G, O, U)``.
        ridge: strength of the regularisation toward the old weights, relative to the mean patch energy.
        constant: whether a constant is fitted too.

    Returns:
        The fit.

    Example:
        >>> x, true = torch.randn(1, 100, 3), torch.tensor([[[1.0, -2.0, 0.5]]])
        >>> moments = Moments()
        >>> moments.add(x, x @ true.mT + 7)
        >>> fit = fit_moments(moments, torch.zeros(1, 1, 3), ridge=0.0)
        >>> fit.weight.round(decimals=3).tolist(), fit.constant.round(decimals=3).tolist()
        ([[[1.0, -2.0, 0.5]]], [[7.0]])
    """
    xx, yx, yy = moments.second(centred=constant)
    old = old.double()
    step = _solve(xx, yx - old @ xx, ridge)
    weight = old + step
    shift = moments.y_mean - moments.x_mean @ weight.mT if constant else moments.y_mean * 0
    return FittedWeights(weight, shift[:, 0], _missed(xx, yx, yy, old), _missed(xx, yx, yy, weight))


def fit_dual(x: Tensor, y: Tensor, old: Tensor, ridge: float, *, constant: bool = True) -> FittedWeights:
    """Fit weights from the rows themselves: for fewer rows than unknowns.

    The same minimum by ``W = W₀ + (y − W₀ x)ᵀ (x xᵀ + R λ 1)⁻¹ x``, with a matrix of the size of
    the rows, not of the unknowns.

    Args:
        x: patches, shape ``(G, R, U)``.
        y: target responses, shape ``(G, R, O)``.
        old: old weights, shape ``(G, O, U)``.
        ridge: strength of the regularisation toward the old weights, relative to the mean patch energy.
        constant: whether a constant is fitted too.

    Returns:
        The fit.
    """
    x, y, old = x.double(), y.double(), old.double()
    x_mean, y_mean = (item.mean(1, keepdim=True) * float(constant) for item in (x, y))
    x, y = x - x_mean, y - y_mean
    missing = y - x @ old.mT
    weight = old + _answers(x, missing, ridge) @ x
    shift = y_mean - x_mean @ weight.mT
    energy = float(y.square().sum()) or 1.0
    left = float((y - x @ weight.mT).square().sum())
    return FittedWeights(weight, shift[:, 0], float(missing.square().sum()) / energy, left / energy)


def fit_restricted(
    second: Tensor, mean: Tensor, weight: Tensor, columns: Tensor, ridge: float, *, constant: bool = True
) -> tuple[Tensor, Tensor]:
    """Fit the responses of the complete weights by some of their columns; no data is read again.

    The responses are linear in the patches, so the patches' second moments are all that is needed,
    for any choice of columns.

    Args:
        second: E[x xᵀ], centred if a constant is fitted, shape ``(G, U, U)``.
        mean: E[x], shape ``(G, 1, U)``.
        weight: the whole weights, shape ``(G, O, U)``.
        columns: the columns that stay, shape ``(K,)``, the same in each group.
        ridge: strength of the regularisation toward the old weights, relative to the mean patch energy.
        constant: whether a constant is fitted too.

    Returns:
        Weights of the columns that stay, shape ``(G, O, K)``, and the constant to add to the responses,
        shape ``(G, O)``, both float64.
    """
    weight = weight.double()
    gone = _others(columns, weight.shape[2])
    lost = weight[..., gone]  # only the response of these columns is missing
    step = _solve(second[:, columns][:, :, columns], lost @ second[:, gone][:, :, columns], ridge)
    shift = mean[..., gone] @ lost.mT - mean[..., columns] @ step.mT
    return weight[..., columns] + step, shift[:, 0] * float(constant)


def fit_rows_restricted(
    rows: Tensor, weight: Tensor, columns: Tensor, ridge: float, *, constant: bool = True
) -> tuple[Tensor, Tensor]:
    """Fit as :func:`fit_restricted` from the patches themselves: for fewer rows than unknowns.

    Args:
        rows: patches, shape ``(G, R, U)``.
        weight: the whole weights, shape ``(G, O, U)``.
        columns: the columns that stay, shape ``(K,)``, the same in each group.
        ridge: strength of the regularisation toward the old weights, relative to the mean patch energy.
        constant: whether a constant is fitted too.

    Returns:
        As :func:`fit_restricted`, in the precision of the patches.
    """
    gone = _others(columns, weight.shape[2])
    x, missing = rows[..., columns], rows[..., gone] @ weight[..., gone].mT
    x_mean, lost_mean = (item.mean(1, keepdim=True) * float(constant) for item in (x, missing))
    x = x - x_mean
    answers = _answers(x.double(), (missing - lost_mean).double(), ridge)
    # Few rows and many unknowns: these products take most time, and need no more digits than the weights.
    step = answers.to(x.dtype) @ x
    return weight[..., columns] + step, (lost_mean - x_mean @ step.mT)[:, 0]


def _answers(x: Tensor, missing: Tensor, ridge: float) -> Tensor:
    """Compute ``missingᵀ (x xᵀ + R λ 1)⁻¹`` for rows x and missing responses; times x, it gives weights."""
    # The scale converts the mean diagonal of x xᵀ over rows to that of the patches' moments over unknowns.
    return _solve(x @ x.mT, missing.mT, ridge, x.shape[1] / x.shape[2])


def _others(columns: Tensor, count: int) -> Tensor:
    """List the columns that are not among these."""
    left = torch.ones(count, dtype=torch.bool, device=columns.device)
    left[columns] = False
    return left.nonzero()[:, 0]


def _solve(matrix: Tensor, right: Tensor, ridge: float, scale: float = 1.0) -> Tensor:
    """Compute ``right (matrix + ridge · scale · mean diagonal · 1)⁻¹`` for symmetric matrices."""
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    damped = matrix.clone()
    damped.diagonal(dim1=1, dim2=2).add_(ridge * scale * diagonal.mean(1, keepdim=True))
    factor, failed = torch.linalg.cholesky_ex(damped)
    if not bool(failed.any()) and ridge > 0:
        return torch.cholesky_solve(right.mT, factor).mT
    solved: Tensor = right @ torch.linalg.pinv(damped, hermitian=True)
    return solved


def _missed(xx: Tensor, yx: Tensor, yy: Tensor, weight: Tensor) -> float:
    """Compute the share of the energy of the responses that weights miss."""
    left = yy.sum() - 2 * (weight * yx).sum() + (weight @ xx * weight).sum()
    return max(0.0, float(left)) / (float(yy.sum()) or 1.0)
