"""Evaluate a network on labelled examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from secateur._compat import tree_map_only
from secateur.batches import labels_of, split_with_targets
from secateur.errors import DataError, UsageError
from secateur.graph.capture.program import call_arguments, mode_of
from secateur.ranks import split_across_ranks
from secateur.training.context import RunContext
from secateur.training.events import tracked
from secateur.training.losses import LossFunction, main_output
from secateur.untouched import untouched

Batches = Iterable[Any]
"""Pairs of inputs and class indices, or mappings of named arguments with the labels among them."""

Metric = Callable[[nn.Module], float]
"""A metric of the user's: how good a network is; larger is better. It is shown by its attribute ``name``."""

ACCURACY = "top-1"


@dataclass(frozen=True)
class Evaluation:
    """How good a network is.

    Attributes:
        metric: value of the metric; of ``top-1``, the share of examples whose class has the highest score,
            in [0, 1]. Larger is better.
        loss: mean over the examples; zero beside a metric of the user's.
        examples: number of examples; zero beside a metric of the user's.
        name: of the metric.
    """

    metric: float
    loss: float = 0.0
    examples: int = 0
    name: str = ACCURACY

    def __str__(self) -> str:
        if not self.examples:
            return f"{self.name} {self.metric:.6g}"
        return f"{self.name} {self.metric:.2%}, loss {self.loss:.4f} over {self.examples:,} examples"

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON: ``top1``, ``loss``, ``examples`` and the standard ``error``."""
        return {"top1": self.metric, "loss": self.loss, "examples": self.examples, "error": self.error}

    @property
    def error(self) -> float:
        """Standard error of the accuracy on so many examples.

        It is zero for a metric of the user's, whose error is not known.

        >>> round(Evaluation(metric=0.9, loss=0.3, examples=98).error, 2)
        0.03
        """
        if not self.examples:
            return 0.0
        # One example more on either side, so that a perfect score on ten is not taken for certain.
        share = (self.metric * self.examples + 1) / (self.examples + 2)
        return math.sqrt(share * (1 - share) / (self.examples + 2))


def evaluate(
    model: nn.Module,
    batches: Batches,
    *,
    loss_fn: LossFunction = cross_entropy,
    context: RunContext | None = None,
    task: str = "evaluating",
    answers: list[Tensor] | None = None,
) -> Evaluation:
    """Evaluate a network in evaluation mode; each module's mode is restored afterwards.

    Args:
        model: returns class scores, shape ``(batch, classes)``, first or alone.
        batches: pairs of inputs and class indices, or mappings of named arguments, in which the class indices
            are called ``labels`` or ``label``; the same in all processes, which share the work.
        loss_fn: mean loss of a batch.
        context: where to compute, and what to report to; the network is moved to its device. If not given,
            the network is evaluated on its own device, in float32.
        task: name of this work in ``Progress`` events.
        answers: receives the class indices that the network answers, batch by batch, on the CPU; those of
            the examples that this process works on.

    Returns:
        Accuracy and loss over all examples, each example counted once.

    Raises:
        DataError: there are no examples.
        UsageError: the targets are no class indices, one for each example.
        StoppedError: the user asked to stop.

    >>> inputs = torch.eye(3)
    >>> evaluate(nn.Identity(), [(inputs, torch.tensor([0, 1, 0]))]).metric  # doctest: +ELLIPSIS
    0.666...
    """
    context = context or RunContext.of(model)
    model.to(context.device)
    counts: list[int] = []
    found: list[Tensor] = []  # stays on the device until the last batch, which need not be waited for
    with (
        untouched(model),
        mode_of(model, training=False),
        torch.inference_mode(),
        context.fabric.autocast(),
    ):
        parts = split_across_ranks(batches, context.ranks)
        total = len(batches) if isinstance(batches, Sized) else None
        for part in tracked(parts, task, context.callbacks, context.interruption, total):
            if part.examples:
                inputs, targets = split_with_targets(part.batch, "an evaluation")
                inputs, targets = tree_map_only(
                    Tensor, lambda leaf: leaf.to(context.device), (inputs, labels_of(targets))
                )
                args, kwargs = call_arguments(inputs)
                scores = main_output(model(*args, **kwargs)).float()
                _refuse_other_targets(scores, targets)
                predicted = scores.argmax(1)
                if answers is not None:
                    answers.append(predicted.cpu())
                correct = (predicted == targets).sum()
                found.append(torch.stack([correct.float(), loss_fn(scores, targets).float()]))
                counts.append(len(targets))
    sums = torch.zeros(3, dtype=torch.float64)  # correct answers, losses, examples
    for (correct, loss), count in zip(torch.stack(found).tolist() if found else [], counts, strict=True):
        sums += torch.tensor([correct, loss * count, count])
    correct, loss, examples = context.ranks.all_reduce_sum(sums).tolist()
    if not examples:
        raise DataError("there are no examples to evaluate on")
    return Evaluation(correct / examples, loss / examples, int(examples))


def _refuse_other_targets(scores: Tensor, targets: Any) -> None:
    if isinstance(targets, Tensor) and targets.shape == scores.shape[:1] + scores.shape[2:]:
        return
    shape = f"of shape {tuple(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
    raise UsageError(
        f"accuracy needs class indices as targets, but they are {shape} beside outputs of shape "
        f"{tuple(scores.shape)}; pass metric= for another task"
    )
