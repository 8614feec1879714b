"""Distillation: what a larger network answers is a better lesson than the bare class (arXiv 1503.02531)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from secateur.errors import UsageError
from secateur.graph.capture import mode_of
from secateur.training.losses import main_output


@dataclass(frozen=True, eq=False)
class Teacher:
    """A trained network whose answers another one learns to give.

    Attributes:
        model: the network; run in evaluation mode, and never trained.
        weight: share of the loss that its answers make up; the targets make up the rest.
        temperature: soft-max temperature, in both networks; higher ones tell more of the wrong classes.
    """

    model: nn.Module
    weight: float = 0.9
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1:
            raise UsageError(f"the teacher's weight is a share above 0 and up to 1, not {self.weight}")
        if not self.temperature > 0:
            raise UsageError(f"the temperature is above 0, not {self.temperature}")

    @contextmanager
    def teaching(self) -> Iterator[None]:
        """Puts the teacher into evaluation mode for a block; every module gets its own mode back."""
        with mode_of(self.model, training=False):
            yield

    def join(self, loss: Tensor, outputs: Tensor | Sequence[Tensor | None], inputs: Tensor) -> Tensor:
        """The loss against the targets and against the teacher together.

        (1 - w) · loss + w · T² · KL(soft-max(teacher / T) ‖ soft-max(outputs / T)), equation 1 of the paper
        and the scale of its section 2, which keeps gradients of one size for all temperatures.

        Args:
            loss: of the outputs against the targets, a scalar.
            outputs: class scores of shape ``(N, K)``, or a sequence that begins with them.
            inputs: what was asked.

        Returns:
            A scalar, differentiable in ``outputs`` and ``loss``.

        >>> lesson = Teacher(nn.Linear(2, 3), weight=0.5)
        >>> inputs = torch.ones(1, 2)
        >>> float(lesson.join(torch.tensor(2.0), lesson.model(inputs).detach(), inputs))
        1.0
        """
        with torch.no_grad():
            wanted = log_softmax(main_output(self.model(inputs)) / self.temperature, 1)
        found = log_softmax(main_output(outputs) / self.temperature, 1)
        apart = kl_div(found, wanted, reduction="batchmean", log_target=True) * self.temperature**2
        return (1 - self.weight) * loss + self.weight * apart
