"""Decide which network of a training is kept."""

from __future__ import annotations

from secateur.training.evaluate import Evaluation


def is_preferred(found: Evaluation, kept: Evaluation, start: Evaluation, highest: Evaluation) -> bool:
    """Decide whether a network replaces the one that is kept.

    Metrics that differ by less than a standard error are equal, and among equals the lower loss is preferred.
    A network that is worse than the one at the start is never kept. So the lowest perplexity is kept, which
    is that of the lowest loss. A user's metric, whose standard error and loss are not known, must be higher.

    Args:
        found: the network in question.
        kept: the network that is kept so far.
        start: the network before training.
        highest: the best evaluation so far, ``found`` included.

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
        return found.quality > kept.quality
    least = max(start.quality, highest.quality - highest.error)
    if found.quality < least:
        return False
    return kept.quality < least or found.loss < kept.loss
