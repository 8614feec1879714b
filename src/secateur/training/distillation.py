"""Distil a network: train it on the outputs of a larger one as well (arXiv 1503.02531)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from secateur.errors import UsageError
from secateur.graph.capture.program import call_arguments, mode_of
from secateur.training.losses import main_output

_IMAGES = 4  # dimensions of a batch of them


def require_images(inputs: object) -> None:
    """Refuse inputs that are no images, for the flip augmentation of a teacher.

    Args:
        inputs: a tensor of shape ``(N, C, H, W)`` is accepted.

    Raises:
        UsageError: they are something else.
    """
    if not isinstance(inputs, Tensor) or inputs.dim() != _IMAGES:
        found = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise UsageError(
            f"the flip augmentation of the teacher needs images, tensors of shape (N, C, H, W), not {found}; "
            "switch it off"
        )


@dataclass(frozen=True, eq=False)
class Teacher:
    """Hold a trained network whose outputs another network learns.

    Attributes:
        model: the network; run in evaluation mode, and never trained.
        weight: weight of its outputs in the loss, above 0 and up to 1; the targets have the rest.
        temperature: soft-max temperature, in both networks; a higher one gives wrong classes more weight.
        flip: average its outputs over each image and the flipped image, which costs a second forward pass.
            Use it only where a flipped image is of the same class.
        reverse: learn by the reverse divergence, KL(network ‖ teacher), which avoids what the teacher finds
            improbable (arXiv 2306.08543, section 2.1); otherwise by KL(teacher ‖ network), which covers all
            that the teacher finds probable.
        dim: dimension of the class scores in the outputs; -1 for the tokens of a language model.
    """

    model: nn.Module
    weight: float = 0.9
    temperature: float = 4.0
    flip: bool = False
    reverse: bool = False
    dim: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1:
            raise UsageError(f"the teacher's weight is {self.weight}; give a number above 0 and up to 1")
        if not self.temperature > 0:
            raise UsageError(f"the temperature is {self.temperature}; give a number above 0")

    @contextmanager
    def teaching(self) -> Iterator[None]:
        """Put the teacher into evaluation mode for a block, and restore each mode afterwards."""
        with mode_of(self.model, training=False):
            yield

    @torch.no_grad()
    def outputs(self, inputs: Any) -> Tensor:
        """Compute the teacher's outputs.

        Args:
            inputs: of the network; images, shape ``(N, C, H, W)``, with ``flip``.

        Returns:
            Class scores, not differentiable.

        Raises:
            UsageError: the inputs are no images, with ``flip``.

        >>> image = torch.tensor([[[[1.0, 2.0, 6.0]]]])
        >>> first_column = nn.Sequential(nn.Flatten(), nn.Linear(3, 1, bias=False))
        >>> _ = first_column[1].weight.data.copy_(torch.tensor([[1.0, 0.0, 0.0]]))
        >>> Teacher(first_column, flip=True).outputs(image).item()
        3.5
        """
        if not self.flip:
            args, kwargs = call_arguments(inputs)
            return main_output(self.model(*args, **kwargs))
        require_images(inputs)
        views = inputs, inputs.flip(-1)
        return torch.stack([main_output(self.model(view)) for view in views]).mean(0)

    def join(self, loss: Tensor, outputs: Any, inputs: Any) -> Tensor:
        """Combine the loss against the targets with the loss against the teacher.

        (1 - w) · loss + w · T² · KL(soft-max(teacher / T) ‖ soft-max(outputs / T)), equation 1 of the paper
        and the scale of its section 2, which keeps the size of gradients the same for all temperatures. The
        divergence is a mean over all that is classified: images, pixels or tokens.

        Args:
            loss: of the outputs against the targets, a scalar.
            outputs: class scores, or what begins with them: of shape ``(N, K)`` or ``(N, K, ...)``, or
                ``(N, ..., K)`` with ``dim=-1``.
            inputs: of the network.

        Returns:
            A scalar, differentiable in ``outputs`` and ``loss``.

        >>> teacher = Teacher(nn.Linear(2, 3), weight=0.5)
        >>> inputs = torch.ones(1, 2)
        >>> float(teacher.join(torch.tensor(2.0), teacher.model(inputs).detach(), inputs))
        1.0
        """
        wanted, found = (self._logarithms(scores) for scores in (self.outputs(inputs), main_output(outputs)))
        if self.reverse:
            wanted, found = found, wanted
        divergence = kl_div(found, wanted, reduction="batchmean", log_target=True) * self.temperature**2
        return (1 - self.weight) * loss + self.weight * divergence

    def _logarithms(self, scores: Tensor) -> Tensor:
        """Return log-probabilities at the temperature, one row for each example, pixel or token."""
        rows = scores.movedim(self.dim, -1).flatten(0, -2).float()
        return log_softmax(rows / self.temperature, 1)
