"""Write covariances and correlations in operators that ask no tensor for values.

``torch.cov`` looks whether the weights of its observations are positive, which a capture cannot answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def cov(
    input: Tensor,  # noqa: A002 - the name that torch.cov gives it
    *,
    correction: int = 1,
    fweights: Tensor | None = None,
    aweights: Tensor | None = None,
) -> Tensor:
    """Compute what ``torch.cov`` computes: rows are variables, columns are observations.

    Args:
        input: a matrix, or one variable.
        correction: what is subtracted from the number of observations.
        fweights: how often each observation counts.
        aweights: how much each observation counts.

    Returns:
        The covariance of each pair of variables; one number for one variable.

    >>> x = torch.rand(3, 5, dtype=torch.float64)
    >>> torch.allclose(cov(x, correction=0), torch.cov(x, correction=0))
    True
    """
    rows = _rows(input)
    if fweights is None and aweights is None:
        centred = rows - rows.mean(1, keepdim=True)
        return (_products(centred, centred) / (rows.shape[1] - correction)).squeeze()
    given = [weights for weights in (fweights, aweights) if weights is not None]
    weights = given[0] if len(given) == 1 else given[0] * given[1]
    total = weights.sum()
    centred = rows - (rows * weights).sum(1, keepdim=True) / total
    lost = correction if aweights is None else correction * (weights * aweights).sum() / total
    return (_products(centred * weights, centred) / (total - lost)).squeeze()


def corrcoef(input: Tensor) -> Tensor:  # noqa: A002 - the name that torch.corrcoef gives it
    """Compute what ``torch.corrcoef`` computes: rows are variables, columns are observations.

    The number of observations cancels out, so it does not occur.

    Args:
        input: a matrix, or one variable.

    Returns:
        The correlation of each pair of variables; one number for one variable.

    >>> x = torch.rand(3, 5, dtype=torch.float64)
    >>> torch.allclose(corrcoef(x), torch.corrcoef(x))
    True
    """
    rows = _rows(input)
    centred = rows - rows.mean(1, keepdim=True)
    products = _products(centred, centred)
    lengths = (centred * centred.conj()).real.sum(1) if centred.is_complex() else centred.square().sum(1)
    found = products / lengths.sqrt().unsqueeze(1) / lengths.sqrt().unsqueeze(0)
    return (found if found.is_complex() else found.clamp(-1, 1)).squeeze()


WRITTEN_OUT: dict[Any, Callable[..., Tensor]] = {
    torch.cov: cov,
    Tensor.cov: cov,
    torch.corrcoef: corrcoef,
    Tensor.corrcoef: corrcoef,
}
"""For each function, the one that takes its place in a capture."""


def _rows(values: Tensor) -> Tensor:
    return values if values.dim() == 2 else values.reshape(1, -1)


def _products(one: Tensor, other: Tensor) -> Tensor:
    """Multiply all pairs of rows."""
    return one @ (other.conj() if other.is_complex() else other).t()
