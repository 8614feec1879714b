"""Losses of networks that answer more than once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from secateur.errors import TrainingError

LossFunction = Callable[[Tensor, Tensor], Tensor]

_AUXILIARY_WEIGHT = 0.3
_LONE_AUXILIARY_WEIGHT = 0.4


def main_output(outputs: Tensor | Sequence[Tensor | None]) -> Tensor:
    """The network's answer proper: the first, where auxiliary heads answer too.

    Args:
        outputs: a tensor, or a sequence with the main answer first.

    Raises:
        TrainingError: the network returned something else.
    """
    answer = outputs[0] if isinstance(outputs, (tuple, list)) and outputs else outputs
    if not isinstance(answer, Tensor):
        raise TrainingError(
            f"the network returned {type(outputs).__name__}, not a tensor of class scores or a tuple that "
            "begins with one; wrap the network, or train it with a loop of your own"
        )
    return answer


def with_auxiliaries(loss_fn: LossFunction) -> Callable[[Tensor | Sequence[Tensor | None], Tensor], Tensor]:
    """Extends a loss to networks with auxiliary heads.

    GoogLeNet's two heads count 0.3 each (arXiv 1409.4842, section 5), the single head of
    Inception v3 counts 0.4. They answer in training mode only.

    Args:
        loss_fn: loss of one answer against the targets.

    Returns:
        The loss of all answers together.

    >>> import torch
    >>> difference = with_auxiliaries(lambda answer, target: (answer - target).abs().mean())
    >>> one, two = torch.tensor([1.0]), torch.tensor([2.0])
    >>> difference((one, two), one).item() == torch.tensor(0.4).item()
    True
    """

    def total(outputs: Tensor | Sequence[Tensor | None], targets: Tensor) -> Tensor:
        loss = loss_fn(main_output(outputs), targets)
        if isinstance(outputs, Tensor):
            return loss
        auxiliaries = [answer for answer in outputs[1:] if answer is not None]
        weight = _LONE_AUXILIARY_WEIGHT if len(auxiliaries) == 1 else _AUXILIARY_WEIGHT
        for answer in auxiliaries:
            loss = loss + weight * loss_fn(answer, targets)
        return loss

    return total
