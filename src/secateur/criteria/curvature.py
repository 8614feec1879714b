"""Score channels by the diagonal second derivative of the loss: optimal brain damage on gates.

Shapes: B examples, C channels, K numbers that the network puts out per example.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from secateur.batches import LossFunction
from secateur.criteria.base import (
    Needs,
    ObservedNetwork,
    Observer,
    backward_without_grads,
    loss_of,
    register,
)
from secateur.criteria.batch_counter import BatchCounter
from secateur.criteria.gates import GateCriterion, GateObserver
from secateur.errors import UsageError

_MOST_OUTPUTS = 2048
"""A matrix of this size squared is decomposed for each example."""


@register
@dataclass(frozen=True)
class Obd(GateCriterion):
    """Half the second derivative of the loss by a gate on the channel, mean over examples.

    LeCun et al., "Optimal Brain Damage" (1990), 1/2 * h * a^2 with the diagonal second derivative h:
    by a gate g of one on the activation a, the second derivative is h * a^2 itself, summed over
    positions and consumers. arXiv 1611.06440 compares it with the Taylor criterion.

    The estimator is Gauss-Newton: with J the Jacobian of the K outputs of an example by the gate
    and H the Hessian of its loss by the outputs, score = 1/2 * mean of J^T H J. It is never
    negative for a convex loss, and equals the true second derivative where the network is
    piecewise linear in the gate (ReLU, max pooling, batch norm in evaluation). With H = V V^T
    from an eigendecomposition, J^T H J is the sum over the columns v of V of (J^T v)^2: one
    backward pass each, exact, taken if ``passes`` is at least K. Otherwise ``passes`` random
    combinations V e are taken, with the entries of e drawn from {-1, 1}; the mean of their
    (J^T V e)^2 is right in expectation (Hutchinson's estimator).

    Attributes:
        passes: backward passes per batch at most.
        seed: for the random combinations.
    """

    passes: int = 10
    seed: int = 0
    name: ClassVar[str] = "obd"
    needs: ClassVar[Needs] = Needs.OWN_PASSES

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise UsageError(f"obd needs at least one backward pass per batch, not {self.passes}")

    def per_example(self, gate: Tensor) -> Tensor:
        """Return half the squared gate gradient of one combination of outputs."""
        return 0.5 * gate.square()

    def observe(self, network: ObservedNetwork) -> Observer:
        """Make an observer that runs the backward passes."""
        return CurvatureObserver(self, network)


class CurvatureObserver(GateObserver):
    """Run one backward pass per column of the root of the loss's Hessian.

    Args:
        criterion: how many passes.
        network: the network and its layout.
    """

    def __init__(self, criterion: Obd, network: ObservedNetwork) -> None:
        # The columns below already belong to the sum of the examples' losses.
        super().__init__(criterion, replace(network, reduction="sum"))
        self._passes = criterion.passes
        self._batches = BatchCounter(criterion.seed)
        self._mean = network.reduction == "mean"

    def expects(self, examples: int) -> None:
        """Start a batch, for which all processes draw the same random numbers."""
        self._batches.expect(examples)

    def backward(self, outputs: Any, targets: Any, loss_fn: LossFunction) -> None:
        """Propagate the columns, or random combinations of them, back to the gates."""
        columns = self._columns(outputs, targets, loss_fn)
        self._batches.begin(outputs.shape[0])
        if len(columns) > self._passes:
            signs = torch.randint(0, 2, (self._passes, len(columns)), generator=self._batches.generator)
            signs = (signs * 2 - 1).to(columns) / self._passes**0.5
            columns = torch.einsum("pk,kbo->pbo", signs, columns)
        examples = outputs.shape[0]
        for column in columns:
            cotangent = column.view(outputs.shape).to(outputs.dtype)
            backward_without_grads(outputs, self.sources, cotangent, retain_graph=True)
            for gate, places in self.gates.take():
                self.add(gate, places, examples)
                examples = 0  # all columns belong to the same examples

    def _columns(self, outputs: Any, targets: Any, loss_fn: LossFunction) -> Tensor:
        """Compute columns v of the root of each example's Hessian by its outputs, shape ``(K, B, K)``."""
        if not isinstance(outputs, Tensor) or outputs.ndim < 1 or outputs[0].numel() > _MOST_OUTPUTS:
            raise UsageError(
                f"obd needs one output tensor of at most {_MOST_OUTPUTS} numbers per example; "
                "choose 'taylor-squared' for this network"
            )
        leaf = outputs.detach().float().reshape(outputs.shape[0], -1).requires_grad_()
        loss = loss_of(leaf.view(outputs.shape), targets, loss_fn)
        (slope,) = torch.autograd.grad(loss * len(leaf) if self._mean else loss, leaf, create_graph=True)
        hessian = leaf.new_zeros(*leaf.shape, leaf.shape[1])
        if slope.requires_grad:
            for row, entry in enumerate(slope.unbind(1)):
                (hessian[:, row],) = torch.autograd.grad(entry.sum(), leaf, retain_graph=True)
        values, vectors = torch.linalg.eigh((hessian + hessian.mT) / 2)
        roots: Tensor = vectors * values.clamp(min=0).sqrt()[:, None, :]
        return roots.permute(2, 0, 1)
