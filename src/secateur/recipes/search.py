"""Search for the smallest network within an allowed loss of quality."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from secateur.errors import BudgetError, UsageError
from secateur.recipes.callbacks import Callback
from secateur.training.evaluate import Metric

Attempt = Callable[[nn.Module, float], nn.Module]
"""Prunes the given copy to a share of the original's cost, and returns it."""

_FIRST = 0.5


@dataclass(frozen=True)
class Tried:
    """One point of a search: a share of the cost, and the score of the network.

    Attributes:
        number: from 1; 0 for the original network.
        share: of the cost that remains.
        score: quality of the network; larger values are better.
        held: whether that is within the allowed drop.
    """

    number: int
    share: float
    score: float
    held: bool

    def __str__(self) -> str:
        if self.score == -math.inf:
            return f"try {self.number}: {self.share:.1%} cannot be reached"
        verdict = "accepted" if self.held else "rejected"
        return f"try {self.number}: {self.share:.1%} left scores {self.score:.4g}, {verdict}"


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Attributes:
        model: the smallest accepted network; a copy of the original if none was accepted.
        best: its point.
        path: every point that was tried, in order, the original first.

    Example:
        >>> points = [Tried(0, 1.0, 0.95, True), Tried(1, 0.5, 0.96, True), Tried(2, 0.25, 0.8, False)]
        >>> SearchResult(nn.Identity(), points[1], tuple(points)).best.share
        0.5
    """

    model: nn.Module
    best: Tried
    path: tuple[Tried, ...]


def smallest_within(
    model: nn.Module,
    max_drop: float,
    attempt: Attempt,
    judge: Metric,
    *,
    tries: int = 6,
    ratio: float = 1.05,
    callbacks: Sequence[Callback] = (),
) -> SearchResult:
    """Find the smallest share of the cost at which the score is within the allowed drop.

    The first try leaves half; while tries are accepted, each leaves half of the previous one. Afterwards, the
    next try is the geometric mean of the smallest accepted and the largest rejected share, until the two are
    within ``ratio`` or no tries are left. Each try starts from the original network, so every point is the
    result of a single budget. A budget that cannot be met is rejected.

    Args:
        model: the original; not changed.
        max_drop: the largest allowed decrease of the score, in the unit of ``judge``.
        attempt: for example ``lambda net, share: prune(net, x, Budget(macs=share), ...).model``.
        judge: returns the score of a network, larger being better; on examples that are not used for reported
            figures.
        tries: largest number of networks that are pruned.
        ratio: the search stops if the smallest accepted share is at most ``ratio`` times the largest
            rejected share.
        callbacks: receive every try.

    Returns:
        The smallest accepted network, and every point that was tried.

    Raises:
        UsageError: ``max_drop`` is negative, or there is no try.

    >>> net = nn.Linear(1, 1)
    >>> sizes = {id(net): 1.0}
    >>> def attempt(copy, share):
    ...     sizes[id(copy)] = share
    ...     return copy
    >>> def judge(network):  # gets bad below 0.3
    ...     return min(1.0, sizes[id(network)] / 0.3)
    >>> result = smallest_within(net, 0.0, attempt, judge)
    >>> [round(point.share, 3) for point in result.path]
    [1.0, 0.5, 0.25, 0.354, 0.297, 0.324, 0.31]
    >>> round(result.best.share, 3)
    0.31
    """
    if not max_drop >= 0 or tries < 1:
        raise UsageError(
            f"a search needs an allowed drop of at least 0 and at least one try, not {max_drop} and {tries}"
        )
    origin = Tried(0, 1.0, float(judge(model)), held=True)
    path, best, kept, too_small = [origin], origin, model, 0.0
    while len(path) <= tries and best.share > ratio * too_small:
        share = math.sqrt(best.share * too_small) if too_small else best.share * _FIRST
        found = _attempted(copy.deepcopy(model), share, attempt)
        score = -math.inf if found is None else float(judge(found))
        point = Tried(len(path), share, score, held=score >= origin.score - max_drop)
        path.append(point)
        for callback in callbacks:
            callback.on_try(point)
        if found is not None and point.held:
            best, kept = point, found
        else:
            too_small = share
    return SearchResult(copy.deepcopy(model) if kept is model else kept, best, tuple(path))


def _attempted(model: nn.Module, share: float, attempt: Attempt) -> nn.Module | None:
    """Return the smaller network, or ``None`` if the budget cannot be met."""
    try:
        return attempt(model, share)
    except BudgetError:
        return None
