"""Decide which network of a training is kept."""

from __future__ import annotations

from secateur.training.evaluate import Evaluation


def is_preferred(found: Evaluation, kept: Evaluation, start: Evaluation, highest: Evaluation) -> bool:
    """Decide whether a network replaces the one that is kept.

    Metrics that differ by less than a standard error are equal, and among equals the lower loss is preferred.
    A network whose metric is below that at the start is never kept. A user's metric, whose standard error and
    loss are not known, must be higher.

    Args:
        found: the network in question.
        kept: the network that is kept so far.
        start: the network before training.
        highest: the evaluation with the highest metric so far, ``found`` included.

    >>> start, first = Evaluation(0.90, 0.40, 100), Evaluation(0.92, 0.30, 100)
    >>> is_preferred(first, start, start, highest=first)  # equal, and the loss is lower
    True
    >>> later = Evaluation(0.91, 0.35, 100)
    >>> is_preferred(later, first, start, highest=first)  # equal, and the loss is higher
    False
    >>> is_preferred(Evaluation(0.89, 0.2, 100), first, start, highest=first)  # below the start
    False
    """
    if not found.examples:
        return found.metric > kept.metric
    least = max(start.metric, highest.metric - highest.error)
    if found.metric < least:
        return False
    return kept.metric < least or found.loss < kept.loss
