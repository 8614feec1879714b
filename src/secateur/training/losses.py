"""Compute losses of networks with auxiliary outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from secateur.errors import TrainingError

LossFunction = Callable[[Tensor, Tensor], Tensor]

_AUXILIARY_WEIGHT = 0.3
_LONE_AUXILIARY_WEIGHT = 0.4


def main_output(outputs: Tensor | Sequence[Tensor | None]) -> Tensor:
    """Return the main output of a network: the first, if auxiliary heads return outputs too.

    Args:
        outputs: a tensor, or a sequence with the main output first.

    Raises:
        TrainingError: the network returned something else.
    """
    main = outputs[0] if isinstance(outputs, (tuple, list)) and outputs else outputs
    if not isinstance(main, Tensor):
        raise TrainingError(
            f"the network returned {type(outputs).__name__}, not a tensor of class scores or a tuple that "
            "begins with one; wrap the network, or write the training loop yourself"
        )
    return main


def with_auxiliaries(loss_fn: LossFunction) -> Callable[[Tensor | Sequence[Tensor | None], Tensor], Tensor]:
    """Extend a loss to networks with auxiliary heads.

    GoogLeNet's two heads count 0.3 each (arXiv 1409.4842, section 5), the single head of
    Inception v3 counts 0.4. They return outputs in training mode only.

    Args:
        loss_fn: loss of one output against the targets.

    Returns:
        The loss of all outputs together.

    >>> import torch
    >>> difference = with_auxiliaries(lambda output, target: (output - target).abs().mean())
    >>> one, two = torch.tensor([1.0]), torch.tensor([2.0])
    >>> difference((one, two), one).item() == torch.tensor(0.4).item()
    True
    """

    def total(outputs: Tensor | Sequence[Tensor | None], targets: Tensor) -> Tensor:
        loss = loss_fn(main_output(outputs), targets)
        if isinstance(outputs, Tensor):
            return loss
        auxiliaries = [output for output in outputs[1:] if output is not None]
        weight = _LONE_AUXILIARY_WEIGHT if len(auxiliaries) == 1 else _AUXILIARY_WEIGHT
        for output in auxiliaries:
            loss = loss + weight * loss_fn(output, targets)
        return loss

    return total
