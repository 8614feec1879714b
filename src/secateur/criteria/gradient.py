"""Score channels by the gradient of the loss with respect to a gate on each channel.

g_i is the gate gradient of example i (see :mod:`secateur.criteria.gates`), over n examples.
The gradients of ordinary training steps are enough.
"""

from __future__ import annotations

from torch import Tensor

from secateur.criteria.base import register
from secateur.criteria.gates import GateCriterion


@register
class Taylor(GateCriterion):
    """First-order estimate of the loss change: mean over examples of abs(g_i).

    Equation 8 of Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient
    Inference" (arXiv 1611.06440), without its division by the number of positions, so that the
    score is the estimated change of the loss itself. The absolute value is taken per example,
    after the sum over positions and consumers.
    """

    name = "taylor"

    def per_example(self, gate: Tensor) -> Tensor:
        """Return the absolute gate gradient.

        >>> import torch
        >>> Taylor().per_example(torch.tensor([[-1.0, 2.0]]))
        tensor([[1., 2.]])
        """
        return gate.abs()


@register
class TaylorSquared(GateCriterion):
    """Squared first-order estimate: mean over examples of g_i squared.

    The gate form of Molchanov et al., "Importance Estimation for Neural Network Pruning"
    (CVPR 2019, arXiv 1906.10771), with the square taken per example. It ranks channels as Fisher pruning
    does: half the sum over examples of g_i squared is the loss increase under the empirical Fisher
    information (Theis et al., "Faster gaze prediction with dense networks and Fisher pruning",
    arXiv 1801.05787), with coupled channels summed inside the square as in Liu et al., "Group Fisher
    Pruning" (ICML 2021, arXiv 2108.00708).
    """

    name = "taylor-squared"

    def per_example(self, gate: Tensor) -> Tensor:
        """Return the squared gate gradient.

        >>> import torch
        >>> TaylorSquared().per_example(torch.tensor([[-1.0, 2.0]]))
        tensor([[1., 4.]])
        """
        return gate.square()
