"""Evaluate a network on labelled examples, or a language model on text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from secateur._compat import tree_map_only
from secateur.batches import LossFunction, labels_of, split_with_targets
from secateur.errors import DataError, UsageError
from secateur.graph.capture.program import call_arguments, mode_of
from secateur.ranks import split_across_ranks
from secateur.training.context import RunContext
from secateur.training.events import tracked
from secateur.training.losses import evaluation_loss, main_output, next_token_loss, token_losses
from secateur.training.metrics import OWN, PERPLEXITY, TOP_1, MetricKind, kind_named
from secateur.untouched import untouched

Batches = Iterable[Any]
"""Pairs of inputs and class indices, or mappings of named arguments with the labels among them."""

Metric = Callable[[nn.Module], float]
"""A metric of the user's: how good a network is; larger is better. It is shown by its attribute ``name``."""


@dataclass(frozen=True)
class Evaluation:
    """How good a network is.

    Attributes:
        metric: value of the metric: of ``top-1`` the share of examples whose class has the highest score,
            in [0, 1]; of ``perplexity`` the exponential of the loss. Larger is better, except for perplexity.
        loss: mean over the examples; zero beside a metric of the user's.
        examples: number of examples, or of predicted tokens; zero beside a metric of the user's.
        name: of the metric.
        loss_error: standard error of the loss, where it is computed.
        also: further figures of the same measurement, by their keys in summaries.
    """

    metric: float
    loss: float = 0.0
    examples: int = 0
    name: str = TOP_1.name
    loss_error: float = 0.0
    also: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        if not self.examples:
            return self.value
        if self.kind is PERPLEXITY:
            return f"{self.value} ± {self.kind.show_error(self.error)} over {self.examples:,} tokens"
        return f"{self.value}, loss {self.loss:.4f} over {self.examples:,} examples"

    @property
    def kind(self) -> MetricKind:
        """Return what the metric is."""
        return kind_named(self.name)

    @property
    def value(self) -> str:
        """Format the metric with its name.

        >>> Evaluation(0.5).value, Evaluation(34.123, name="perplexity").value
        ('top-1 50.00%', 'perplexity 34.12')
        """
        return f"{self.name} {self.kind.show(self.metric)}"

    @property
    def quality(self) -> float:
        """Return the number by which networks are compared: larger is better, NaN is the worst."""
        if math.isnan(self.metric):
            return -math.inf
        return -self.metric if self.kind.lower_is_better else self.metric

    @property
    def figures(self) -> dict[str, float]:
        """Return the metric by its key in summaries, and further figures of the same measurement."""
        return {self.kind.key: self.metric, **self.also}

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values: the figures, ``loss``, ``examples`` and the standard ``error``.

        >>> sorted(Evaluation(0.5).to_dict())
        ['error', 'examples', 'loss', 'top1']
        """
        return {
            **self.figures,
            "loss": self.loss,
            "examples": self.examples,
            "error": self.error,
        }

    @property
    def error(self) -> float:
        """Standard error of the metric.

        It is zero for a metric of the user's, whose error is not known.

        >>> round(Evaluation(metric=0.9, loss=0.3, examples=98).error, 2)
        0.03
        """
        if self.kind is PERPLEXITY:
            return self.metric * self.loss_error  # to first order
        if self.kind is OWN or not self.examples:
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
        loss_fn: mean loss of a batch. With :func:`secateur.training.losses.next_token_loss`, the network is a
            language model, which is judged by :func:`perplexity`.
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
    if loss_fn is next_token_loss:
        return perplexity(model, batches, context=context, task=task)
    context = context or RunContext.of(model)
    counts: list[int] = []
    found: list[Tensor] = []  # stays on the device until the last batch, which need not be waited for

    def judge(scores: Tensor, targets: Any) -> None:
        _refuse_other_targets(scores, targets)
        predicted = scores.argmax(1)
        if answers is not None:
            answers.append(predicted.cpu())
        correct = (predicted == targets).sum()
        found.append(torch.stack([correct.float(), loss_fn(scores, targets).float()]))
        counts.append(len(targets))

    _run(model, batches, context, task, judge)
    sums = torch.zeros(3, dtype=torch.float64)  # correct answers, losses, examples
    for (correct, loss), count in zip(torch.stack(found).tolist() if found else [], counts, strict=True):
        sums += torch.tensor([correct, loss * count, count])
    correct, loss, examples = context.ranks.all_reduce_sum(sums).tolist()
    if not examples:
        raise DataError("there are no examples to evaluate on")
    return Evaluation(correct / examples, loss / examples, int(examples))


def perplexity(
    model: nn.Module, batches: Batches, *, context: RunContext | None = None, task: str = "evaluating"
) -> Evaluation:
    """Compute the perplexity of a language model: the exponential of the mean loss of a predicted token.

    The protocol is that of the batches: each block of tokens is read alone, every token is predicted from the
    tokens before it in its block, and the first token of a block is not predicted. Tokens whose target is
    -100 are read, but not counted; blocks that overlap (``TextSettings.stride``) use this. Logits of one
    batch are kept at a time.

    The standard error is that of a ratio over blocks (sum of losses to number of tokens), to first order.

    Args:
        model: returns logits of the next token, shape ``(batch, length, vocabulary)``, first or alone.
        batches: pairs of inputs and token ids, int64, shape ``(batch, length)``, as
            :class:`secateur.language.TextBlocks` returns them; or mappings with ``labels``. Targets are not
            shifted.
        context: as for :func:`evaluate`.
        task: as for :func:`evaluate`.

    Returns:
        Perplexity, mean loss in nats, and the number of predicted tokens.

    Raises:
        DataError: no token is predicted.
        UsageError: targets and outputs do not fit.
        StoppedError: the user asked to stop.

    Example:
        >>> class Uniform(nn.Module):  # every token of 8 is equally probable
        ...     def forward(self, input_ids):
        ...         return torch.zeros(*input_ids.shape, 8)
        >>> words = torch.randint(8, (4, 16))
        >>> print(perplexity(Uniform(), [({"input_ids": words}, words)]))
        perplexity 8.00 ± 0 over 60 tokens
    """
    context = context or RunContext.of(model)
    found: list[Tensor] = []

    def judge(logits: Tensor, targets: Any) -> None:
        losses, counted = token_losses(logits, targets)
        found.append(torch.stack([losses.sum(1), counted.sum(1).float()]))

    _run(model, batches, context, task, judge)
    losses, tokens = torch.cat(found, 1).cpu().double() if found else torch.zeros(2, 0, dtype=torch.float64)
    sums = torch.stack([losses.sum(), tokens.sum(), (tokens > 0).sum()])
    total, count, blocks = context.ranks.all_reduce_sum(sums).tolist()
    if not count:
        raise DataError("there are no tokens to predict")
    loss = total / count
    rest = context.ranks.all_reduce_sum((losses - loss * tokens).square().sum())
    variance = float(rest) * blocks / (blocks - 1) / count**2 if blocks > 1 else 0.0
    return Evaluation(_exp(loss), loss, int(count), PERPLEXITY.name, math.sqrt(variance))


def validate(
    model: nn.Module,
    batches: Batches | None,
    metric: Metric | None,
    loss_fn: LossFunction | None,
    context: RunContext,
) -> Evaluation:
    """Evaluate a network as its training does: by a metric of the user's, or on validation examples.

    Args:
        model: the network.
        batches: the validation examples; not read if there is a metric.
        metric: judges the network in evaluation mode, without gradients.
        loss_fn: that of its training, if one was given.
        context: where to compute.

    Raises:
        UsageError: there are neither examples nor a metric.
    """
    if metric is not None:
        with mode_of(model, training=False), torch.no_grad():
            return Evaluation(float(metric(model)), name=getattr(metric, "name", OWN.name))
    if batches is None:
        raise UsageError("there is nothing to evaluate on: pass Training(validation=...) or a metric")
    return evaluate(model, batches, loss_fn=evaluation_loss(loss_fn), context=context, task="validating")


def _run(
    model: nn.Module,
    batches: Batches,
    context: RunContext,
    task: str,
    judge: Callable[[Tensor, Any], None],
) -> None:
    """Run a network on the examples of this process; each batch's main output and targets are judged."""
    model.to(context.device)
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
                # Copies, since a forward pass may write to its inputs.
                inputs, targets = tree_map_only(
                    Tensor, lambda leaf: leaf.to(context.device, copy=True), (inputs, labels_of(targets))
                )
                args, kwargs = call_arguments(inputs)
                judge(main_output(model(*args, **kwargs)).float(), targets)


def _exp(loss: float) -> float:
    """Return the exponential, or infinity where a float cannot hold it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _refuse_other_targets(scores: Tensor, targets: Any) -> None:
    if isinstance(targets, Tensor) and targets.shape == scores.shape[:1] + scores.shape[2:]:
        return
    shape = f"of shape {tuple(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
    raise UsageError(
        f"accuracy needs class indices as targets, but they are {shape} beside outputs of shape "
        f"{tuple(scores.shape)}; pass metric= for another task"
    )
