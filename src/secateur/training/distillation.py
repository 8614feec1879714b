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
from secateur.outputs import parts_of
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
        weight: weight of its class scores in the loss, up to 1; the targets have the rest. 0 for none.
        temperature: soft-max temperature, in both networks; a higher one gives wrong classes more weight.
        flip: average its outputs over each image and the flipped image, which costs a second forward pass.
            Use it only where a flipped image is of the same class.
        reverse: learn by the reverse divergence, KL(network ‖ teacher), which avoids what the teacher finds
            improbable (arXiv 2306.08543, section 2.1); otherwise by KL(teacher ‖ network), which covers all
            that the teacher finds probable.
        dim: dimension of the class scores in the outputs; -1 for the tokens of a language model.
        outputs_weight: weight of the difference of all outputs, of any kind, which is added to the loss; see
            :func:`relative_difference`. 0 for none.
    """

    model: nn.Module
    weight: float = 0.9
    temperature: float = 4.0
    flip: bool = False
    reverse: bool = False
    dim: int = 1
    outputs_weight: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise UsageError(f"the teacher's weight is {self.weight}; give a number from 0 to 1")
        if not self.outputs_weight >= 0 or not (self.weight or self.outputs_weight):
            raise UsageError(
                f"the teacher's weights are {self.weight} and {self.outputs_weight}; give one above 0"
            )
        if not self.temperature > 0:
            raise UsageError(f"the temperature is {self.temperature}; give a number above 0")

    @contextmanager
    def teaching(self) -> Iterator[None]:
        """Put the teacher into evaluation mode for a block, and restore each mode afterwards."""
        with mode_of(self.model, training=False):
            yield

    @torch.no_grad()
    def outputs(self, inputs: Any) -> Any:
        """Compute all outputs of the teacher, in their structure.

        Args:
            inputs: of the network.
        """
        args, kwargs = call_arguments(inputs)
        return self.model(*args, **kwargs)

    @torch.no_grad()
    def scores(self, inputs: Any, outputs: Any) -> Tensor:
        """Compute the scores that the network learns.

        Args:
            inputs: of the network; images, shape ``(N, C, H, W)``, with ``flip``.
            outputs: of the teacher for these inputs.

        Returns:
            Class scores, not differentiable.

        Raises:
            UsageError: the inputs are no images, with ``flip``.

        >>> image = torch.tensor([[[[1.0, 2.0, 6.0]]]])
        >>> first_column = nn.Sequential(nn.Flatten(), nn.Linear(3, 1, bias=False))
        >>> _ = first_column[1].weight.data.copy_(torch.tensor([[1.0, 0.0, 0.0]]))
        >>> Teacher(first_column, flip=True).scores(image, first_column(image)).item()
        3.5
        """
        if not self.flip:
            return main_output(outputs)
        require_images(inputs)
        views = outputs, self.model(inputs.flip(-1))
        return torch.stack([main_output(view) for view in views]).mean(0)

    def join(self, loss: Tensor, outputs: Any, inputs: Any, *, scores: bool = True) -> Tensor:
        """Combine the loss against the targets with the loss against the teacher.

        (1 - w) · loss + w · T² · KL(soft-max(teacher / T) ‖ soft-max(outputs / T)), equation 1 of the paper
        and the scale of its section 2, which keeps the size of gradients the same for all temperatures. The
        divergence is a mean over all that is classified: images, pixels or tokens. The difference of all
        outputs is added with its weight.

        Args:
            loss: of the outputs against the targets, a scalar.
            outputs: what the network returned. With ``weight`` class scores, or what begins with them: of
                shape ``(N, K)`` or ``(N, K, ...)``, or ``(N, ..., K)`` with ``dim=-1``.
            inputs: of the network.
            scores: whether the outputs are class scores; if not, ``weight`` has no effect.

        Returns:
            A scalar, differentiable in ``outputs`` and ``loss``.

        >>> teacher = Teacher(nn.Linear(2, 3), weight=0.5)
        >>> inputs = torch.ones(1, 2)
        >>> float(teacher.join(torch.tensor(2.0), teacher.model(inputs).detach(), inputs))
        1.0
        """
        learns_scores = bool(self.weight and scores)
        if not learns_scores and not self.outputs_weight:
            return loss
        answers = self.outputs(inputs)
        if learns_scores:
            pair = self.scores(inputs, answers), main_output(outputs)
            wanted, found = (self._logarithms(each) for each in pair)
            if self.reverse:
                wanted, found = found, wanted
            divergence = kl_div(found, wanted, reduction="batchmean", log_target=True) * self.temperature**2
            loss = (1 - self.weight) * loss + self.weight * divergence
        if self.outputs_weight:
            loss = loss + self.outputs_weight * relative_difference(outputs, answers)
        return loss

    def _logarithms(self, scores: Tensor) -> Tensor:
        """Return log-probabilities at the temperature, one row for each example, pixel or token."""
        rows = scores.movedim(self.dim, -1).flatten(0, -2).float()
        return log_softmax(rows / self.temperature, 1)


def relative_difference(found: Any, wanted: Any) -> Tensor:
    """Compute the mean squared difference of outputs as a share of their variance.

    It is averaged over the tensors, so that boxes in pixels and scores count alike. Losses among the outputs,
    and tensors that only one side has, do not count.

    Args:
        found: outputs of the network that is trained, in any structure.
        wanted: outputs of its teacher.

    Returns:
        A scalar, differentiable in ``found``; 0 for equal outputs, about 1 for outputs that are all the mean.

    Raises:
        UsageError: they have no tensor in common.

    >>> wanted = {"boxes": torch.tensor([100.0, 300.0]), "scores": torch.tensor([0.1, 0.3])}
    >>> found = {"boxes": torch.tensor([200.0, 200.0]), "scores": torch.tensor([0.1, 0.3])}
    >>> round(float(relative_difference(found, wanted)), 4)
    0.5
    """
    mine, theirs = (_by_path(outputs) for outputs in (found, wanted))
    paths = [path for path in theirs if path in mine and mine[path].shape == theirs[path].shape]
    if not paths:
        raise UsageError(
            "distillation.outputs: the outputs of the network in training and of its teacher have no tensor "
            f"in common ({', '.join(mine)}; {', '.join(theirs)}); set it to 0"
        )
    shares = []
    for path in paths:
        one, other = mine[path].float(), theirs[path].float()
        spread = other.var(correction=0).clamp(min=torch.finfo(torch.float32).tiny)
        shares.append((one - other).square().mean() / spread)
    return torch.stack(shares).mean()


def _by_path(outputs: Any) -> dict[str, Tensor]:
    """List the tensors of an output that are no losses, by their paths; a first one has no path."""
    parts = parts_of(outputs)
    pairs = zip(parts.paths, parts.leaves, strict=True)
    found = {
        path: leaf
        for path, leaf in pairs
        if isinstance(leaf, Tensor) and leaf.dim() and leaf.is_floating_point()
    }
    # With auxiliary heads a network returns a tuple in training mode, and its first tensor otherwise.
    return {"" if path == "[0]" else path: leaf for path, leaf in found.items()}
