"""Sum the second moments of patches and responses, which are all that least squares needs.

Shapes: G groups of a convolution, R rows (positions of examples), U unknowns of an output
channel, O output channels of a group.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Moments:
    """Sum products of patches ``x`` and responses ``y``, block by block.

    Rows are shifted by the mean of the first block before they are multiplied, so that no precision is
    lost when a mean is much larger than the deviations; sums are in float64.

    Attributes:
        count: number of rows so far.

    Example:
        >>> moments = Moments()
        >>> x = torch.randn(1, 50, 3, dtype=torch.float64) + 100
        >>> moments.add(x[:, :20], x[:, :20, :1])
        >>> moments.add(x[:, 20:], x[:, 20:, :1])
        >>> torch.allclose(moments.covariance[0], torch.cov(x[0].T, correction=0))
        True
    """

    count: int = 0
    _x0: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False)
    _y0: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False)
    _x: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False)
    _y: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False)
    _xx: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False)
    _yx: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False)
    _yy: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows.

        Args:
            x: patches, shape ``(G, R, U)``.
            y: responses, shape ``(G, R, O)``.
        """
        if x.shape[1] == 0:
            return
        if not self.count:
            self._start(x, y)
        x, y = x - self._x0, y - self._y0
        self.count += x.shape[1]
        self._x += x.sum(1, keepdim=True, dtype=torch.float64)
        self._y += y.sum(1, keepdim=True, dtype=torch.float64)
        self._xx += x.mT @ x
        self._yx += y.mT @ x
        self._yy += y.square().sum(1, keepdim=True, dtype=torch.float64)

    def _start(self, x: Tensor, y: Tensor) -> None:
        groups, _, unknowns = x.shape
        outputs = y.shape[2]
        self._x0, self._y0 = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
        zeros = x.new_zeros((), dtype=torch.float64)
        self._x, self._y = zeros.new_zeros(groups, 1, unknowns), zeros.new_zeros(groups, 1, outputs)
        self._xx = zeros.new_zeros(groups, unknowns, unknowns)
        self._yx = zeros.new_zeros(groups, outputs, unknowns)
        self._yy = zeros.new_zeros(groups, 1, outputs)

    @property
    def x_mean(self) -> Tensor:
        """Return the mean patch, float64, shape ``(G, 1, U)``."""
        return self._x0.double() + self._x / self.count

    @property
    def y_mean(self) -> Tensor:
        """Return the mean response, float64, shape ``(G, 1, O)``."""
        return self._y0.double() + self._y / self.count

    @property
    def covariance(self) -> Tensor:
        """Return the covariance of the patches, float64, shape ``(G, U, U)``."""
        return self._xx / self.count - (self._x / self.count).mT @ (self._x / self.count)

    @property
    def cross(self) -> Tensor:
        """Return the covariance of responses and patches, float64, shape ``(G, O, U)``."""
        return self._yx / self.count - (self._y / self.count).mT @ (self._x / self.count)

    @property
    def variance(self) -> Tensor:
        """Return the variance of the responses, float64, shape ``(G, 1, O)``."""
        return self._yy / self.count - (self._y / self.count).square()

    def second(self, *, centred: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the moments of least squares: with a free constant (centred) or without.

        Returns:
            E[x xᵀ], shape ``(G, U, U)``, E[y xᵀ], shape ``(G, O, U)``, and E[y²], shape ``(G, 1, O)``.
        """
        if centred:
            return self.covariance, self.cross, self.variance
        x, y = self.x_mean, self.y_mean
        return self.covariance + x.mT @ x, self.cross + y.mT @ x, self.variance + y.square()
