"""Decide which network of a training is kept."""

from __future__ import annotations

import math

from secateur.training.evaluate import Evaluation
from secateur.training.metrics import PERPLEXITY


def is_preferred(found: Evaluation, kept: Evaluation, start: Evaluation, highest: Evaluation) -> bool:
    """Decide whether a network replaces the one that is kept, which is an earlier one.

    Accuracies that differ by less than the standard error of their difference are equal, and among equals the
    later network is preferred: it was trained for longer, and at a lower rate. The loss does not decide
    between them: wrong answers that become more certain raise it, while accuracy still grows. A network that
    is less accurate than the one at the start is not kept.

    A perplexity is the exponential of the loss that is trained, so the lowest one is kept. A user's metric,
    whose standard error is not known, must be higher.

    Args:
        found: the network in question.
        kept: the network that is kept so far.
        start: the network before training.
        highest: the best evaluation so far, ``found`` included.

    >>> start, first = Evaluation(0.90, 0.40, 100), Evaluation(0.92, 0.30, 100)
    >>> is_preferred(first, start, start, highest=first)
    True
    >>> later = Evaluation(0.91, 0.35, 100)
    >>> is_preferred(later, first, start, highest=first)  # equal, and later
    True
    >>> is_preferred(Evaluation(0.80, 0.20, 100), first, start, highest=first)  # lower
    False
    >>> is_preferred(Evaluation(0.89, 0.20, 100), first, start, highest=first)  # below the start
    False
    """
    if not found.examples or found.kind is PERPLEXITY:
        return found.quality > kept.quality
    if found.quality < start.quality:
        return False
    return highest.quality - found.quality <= math.hypot(found.error, highest.error)
