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

_PICTURES = 4  # dimensions of a batch of them


def need_pictures(inputs: object) -> None:
    """Refuses to mirror anything but pictures.

    Args:
        inputs: a tensor of shape ``(N, C, H, W)``, if all is well.

    Raises:
        UsageError: it is something else.
    """
    if not isinstance(inputs, Tensor) or inputs.dim() != _PICTURES:
        found = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise UsageError(
            f"mirror images are those of pictures, tensors of shape (N, C, H, W), not of {found}; "
            "leave mirror out"
        )


@dataclass(frozen=True, eq=False)
class Teacher:
    """A trained network whose answers another one learns to give.

    Attributes:
        model: the network; run in evaluation mode, and never trained.
        weight: share of the loss that its answers make up; the targets make up the rest.
        temperature: soft-max temperature, in both networks; higher ones tell more of the wrong classes.
        mirror: ask for the mirror image of each picture too, and teach the mean of both answers: a better
            lesson, for a second forward pass, where mirroring makes no other class of a picture.
    """

    model: nn.Module
    weight: float = 0.9
    temperature: float = 2.0
    mirror: bool = False

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

    @torch.no_grad()
    def answers(self, inputs: Tensor) -> Tensor:
        """What the teacher says.

        Args:
            inputs: what is asked; pictures, shape ``(N, C, H, W)``, if mirror images are asked for too.

        Returns:
            Class scores of shape ``(N, K)``, not differentiable.

        Raises:
            UsageError: mirror images are asked for of what is no pictures.

        >>> picture = torch.tensor([[[[1.0, 2.0, 6.0]]]])
        >>> first_column = nn.Sequential(nn.Flatten(), nn.Linear(3, 1, bias=False))
        >>> _ = first_column[1].weight.data.copy_(torch.tensor([[1.0, 0.0, 0.0]]))
        >>> Teacher(first_column, mirror=True).answers(picture).item()
        3.5
        """
        if not self.mirror:
            return main_output(self.model(inputs))
        need_pictures(inputs)
        views = inputs, inputs.flip(-1)
        return torch.stack([main_output(self.model(view)) for view in views]).mean(0)

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
        wanted = log_softmax(self.answers(inputs) / self.temperature, 1)
        found = log_softmax(main_output(outputs) / self.temperature, 1)
        apart = kl_div(found, wanted, reduction="batchmean", log_target=True) * self.temperature**2
        return (1 - self.weight) * loss + self.weight * apart
