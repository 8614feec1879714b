"""The order in which channels are removed: by score over all groups, or evenly over all groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from secateur.budget.feasible import FeasibleWidths
from secateur.criteria.normalise import normalise
from secateur.errors import UsageError
from secateur.graph import ChannelGraph
from secateur.graph.groups import IntArray

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RemovalOrder:
    """Units of channels in the order in which they are removed.

    A unit is what is removed at once: one channel, or as many as rounded widths need.

    Attributes:
        groups: the group of each unit, by index, shape (units,).
        sizes: channels in each unit.
        must: how many units are removed in any case; they come first.
        channels: for each group, its channels in the order in which they are removed.
    """

    groups: IntArray
    sizes: IntArray
    must: int
    channels: tuple[IntArray, ...]

    def widths(self, start: IntArray, counts: IntArray) -> IntArray:
        """Compute widths after the first units are removed.

        Args:
            start: widths of the groups before, shape (groups,).
            counts: numbers of units, ascending, shape (n,).

        Returns:
            Widths of shape (n, groups).
        """
        gone = np.zeros((len(counts), len(start)), dtype=np.int64)
        last = int(counts[-1]) if len(counts) else 0
        interval = np.searchsorted(counts, np.arange(last), side="right")
        np.add.at(gone, (interval, self.groups[:last]), self.sizes[:last])
        return start - np.cumsum(gone, axis=0)


def removal_order(
    ranked: Mapping[int, FloatArray], feasible: FeasibleWidths, allocation: str
) -> RemovalOrder:
    """Order all channels that may be removed.

    Within a group the channel of the lowest score is first. Over the groups, ``global`` takes
    the unit of the lowest mean score, ``uniform`` the unit that leaves its group the largest
    share. Ties are broken by the order of groups, then of channels, in the network.

    Args:
        ranked: comparable scores of each group that may be cut, by group index.
        feasible: the widths that the groups may take.
        allocation: ``"global"`` or ``"uniform"``.

    Returns:
        The order.
    """
    channels = [np.empty(0, dtype=np.int64)] * len(feasible.original)
    owners, sizes, keys, musts = [], [], [], []
    for group, scores in ranked.items():
        units = feasible.units(group)
        channels[group] = np.argsort(scores, kind="stable")
        if not len(units):
            continue
        ends = np.cumsum(units)
        if allocation == "global":
            sums = np.add.reduceat(scores[channels[group]][: ends[-1]], ends - units)
            # Rounding must not order a unit before the one below it in its group.
            key = np.maximum.accumulate(sums / units)
        else:
            key = ends / feasible.original[group]
        owners.append(np.full(len(units), group, dtype=np.int64))
        sizes.append(units)
        keys.append(key)
        musts.append(ends <= feasible.original[group] - feasible.most[group])
    if not owners:
        nothing = np.empty(0, dtype=np.int64)
        return RemovalOrder(nothing, nothing, 0, tuple(channels))
    owner, must = np.concatenate(owners), np.concatenate(musts)
    # A stable sort: units with equal keys stay sorted by group, and by position within it.
    order = np.lexsort((owner, np.concatenate(keys), ~must))
    return RemovalOrder(owner[order], np.concatenate(sizes)[order], int(must.sum()), tuple(channels))


def comparable(
    graph: ChannelGraph, scores: Mapping[str, Any], feasible: FeasibleWidths, normalize: str
) -> dict[int, FloatArray]:
    """Check and normalise the scores of the groups that may be cut, in double precision.

    Args:
        graph: the graph of the network.
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
    for name in scores:
        graph[name]  # an unknown name is an error
    values = {}
    for number, group in enumerate(graph.groups):
        if feasible.least[number] == feasible.original[number]:
            continue
        if group.name not in scores:
            raise UsageError(
                f"there are no scores for group '{group.name}': score it, or name it in Widths(ignore=...)"
            )
        values[group.name] = torch.from_numpy(_vector(scores[group.name], group.name, group.channels))
    normal = normalise(values, normalize)
    return {
        number: normal[group.name].numpy()
        for number, group in enumerate(graph.groups)
        if group.name in normal
    }


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
