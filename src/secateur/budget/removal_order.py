"""Order the removal of channels and branches: by score over all groups, or evenly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from secateur.budget.feasible import FeasibleWidths
from secateur.budget.limits import CostEvaluator
from secateur.criteria import Scores
from secateur.criteria.normalise import normalise
from secateur.errors import UsageError
from secateur.graph.groups import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class RemovalOrder:
    """Steps of the removal of channels and branches, in order.

    A step is what is removed at once: one channel, or as many as rounded widths need, or a depth unit.

    Attributes:
        groups: the tie of each step, by index, shape (steps,).
        sizes: channels in each step; 1 for a depth unit.
        must: how many steps are made in any case; they come first.
    """

    groups: IntArray
    sizes: IntArray
    must: int

    def widths(self, start: IntArray, counts: IntArray) -> IntArray:
        """Compute widths after the first steps.

        Args:
            start: widths before, shape (ties,).
            counts: numbers of steps, ascending, shape (n,).

        Returns:
            Widths of shape (n, ties).
        """
        gone = np.zeros((len(counts), len(start)), dtype=np.int64)
        last = int(counts[-1]) if len(counts) else 0
        interval = np.searchsorted(counts, np.arange(last), side="right")
        np.add.at(gone, (interval, self.groups[:last]), self.sizes[:last])
        return start - np.cumsum(gone, axis=0)


def removal_order(
    ranked: Mapping[int, FloatArray], feasible: FeasibleWidths, allocation: str
) -> RemovalOrder:
    """Order all channels and branches that may be removed.

    Within a group the channel of the lowest score is first. Over the groups, ``global`` takes
    the step of the lowest mean score, ``uniform`` the step that leaves its group the largest
    share. Of equals, the first in the network comes first. Groups of one width lose the next channel of each
    together, and their scores are summed.

    Args:
        ranked: comparable scores of each group and depth unit that may be cut, by index.
        feasible: the widths that they may take.
        allocation: ``"global"`` or ``"uniform"``.

    Returns:
        The order.
    """
    ties = feasible.space.ties
    owners, sizes, keys, musts = [], [], [], []
    for group in sorted({int(ties[unit]) for unit in ranked}):
        units = feasible.steps(group)
        if not len(units):
            continue
        ends = np.cumsum(units)
        if allocation == "global":
            scores = np.sum([np.sort(ranked[unit]) for unit in ranked if ties[unit] == group], axis=0)
            sums = np.add.reduceat(scores[: ends[-1]], ends - units)
            # Rounding must not order a step before the one below it in its group.
            key = np.maximum.accumulate(sums / units)
        else:
            key = ends / feasible.original[group]
        owners.append(np.full(len(units), group, dtype=np.int64))
        sizes.append(units)
        keys.append(key)
        musts.append(ends <= feasible.original[group] - feasible.most[group])
    if not owners:
        nothing = np.empty(0, dtype=np.int64)
        return RemovalOrder(nothing, nothing, 0)
    owner, must = np.concatenate(owners), np.concatenate(musts)
    # A stable sort: steps with equal keys stay sorted by group, and by position within it.
    order = np.lexsort((owner, np.concatenate(keys), ~must))
    return RemovalOrder(owner[order], np.concatenate(sizes)[order], int(must.sum()))


def comparable(scores: Mapping[str, Any], feasible: FeasibleWidths, normalize: str) -> dict[int, FloatArray]:
    """Check and normalise the scores of the groups that may be cut, in double precision.

    Args:
        scores: by group name; a tensor, an array or a sequence of one number for each channel.
            Those of groups that may not be cut are not read.
        feasible: the widths that the groups may take.
        normalize: as in ``normalise``.

    Returns:
        The scores by group index, in the order of the network.

    Raises:
        UsageError: scores are missing, of the wrong length, not finite or not numbers, or a name is
            unknown.
    """
    values = {name: torch.from_numpy(vector) for name, vector in _raw(scores, feasible).items()}
    normal = normalise(values, normalize)
    return {
        number: normal[group.name].numpy()
        for number, group in enumerate(feasible.space.graph.groups)
        if group.name in normal
    }


def per_cost(
    scores: Mapping[str, Any], feasible: FeasibleWidths, evaluator: CostEvaluator
) -> dict[int, FloatArray]:
    """Divide the scores of channels and branches by the costs that their removal saves.

    A branch and a channel save different amounts, so only the estimated damage per saved cost is comparable.
    The cost is the sum, over the limited quantities, of the saved share of the whole network's amount. What
    saves nothing gets an infinite score.

    Args:
        scores: raw scores, of channels by group name; ``Scores`` with scores of branches.
        feasible: the widths that groups and depth units may take.
        evaluator: the network and the limits.

    Returns:
        The scores by index of group or depth unit, in the order of the network.

    Raises:
        UsageError: scores are missing, of the wrong length, not finite or not numbers, or a name is
            unknown.
    """
    graph, units = evaluator.graph, feasible.space.depth.units
    values = {graph.index(name): vector for name, vector in _raw(scores, feasible).items()}
    branches = branch_scores(scores, [name for unit in units for name in unit])
    for number, unit in enumerate(units, len(graph.groups)):
        values[number] = np.array([sum(branches[name] for name in unit)])
    if not values:
        return {}
    numbers = np.array(list(values), dtype=np.int64)
    trials = np.repeat(feasible.original[None], len(numbers) + 1, axis=0)
    trials[np.arange(len(numbers)), numbers] -= 1
    costs = evaluator.limited(trials).astype(np.float64)
    saved = ((costs[-1] - costs[:-1]) / np.maximum(costs[-1], 1)).sum(axis=1)
    return {
        number: vector / cost if cost > 0 else np.full(len(vector), np.inf)
        for (number, vector), cost in zip(values.items(), saved.tolist(), strict=True)
    }


def branch_scores(scores: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    """Look up the scores of branches.

    Raises:
        UsageError: a branch has none.
    """
    known: Mapping[str, float] = getattr(scores, "branches", {})
    for name in names:
        if name not in known:
            by = f"the criterion '{scores.criterion}'" if isinstance(scores, Scores) else "the scores"
            raise UsageError(
                f"{by} does not score residual branches, such as '{name}': take 'taylor', measure width "
                "curves of branches, or set depth to 'off'"
            )
    return {name: float(known[name]) for name in names}


def _raw(scores: Mapping[str, Any], feasible: FeasibleWidths) -> dict[str, FloatArray]:
    """Check the scores of the groups that may be cut."""
    graph, ties = feasible.space.graph, feasible.space.ties
    for name in scores:
        graph[name]  # an unknown name is an error
    values = {}
    for number, group in enumerate(graph.groups):
        if feasible.least[ties[number]] == feasible.original[ties[number]]:
            continue
        if group.name not in scores:
            raise UsageError(
                f"there are no scores for group '{group.name}': score it, or name it in Widths(ignore=...)"
            )
        values[group.name] = _vector(scores[group.name], group.name, group.channels)
    return values


def _vector(values: Any, group: str, channels: int) -> FloatArray:
    """Convert the scores of one group to float64 of shape (channels,)."""
    try:
        found = values.detach().cpu().double().numpy() if isinstance(values, torch.Tensor) else values
        array = np.array(found, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the scores of group '{group}' are not real numbers: {error}") from error
    if array.shape != (channels,):
        raise UsageError(f"group '{group}' has {channels} channels, its scores have shape {array.shape}")
    wrong = np.flatnonzero(~np.isfinite(array))
    if len(wrong):
        raise UsageError(f"the score of channel {wrong[0]} of group '{group}' is {array[wrong[0]]}")
    return array
