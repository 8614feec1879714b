"""Widths that run well: those beyond which a device charges for more channels.

Devices work in steps: for some groups 60 channels take as long as 64, and for some 65 as long as 96. A width
runs well if going on to a wider one costs time, about as much as channels cost in its neighbourhood.
"""

from __future__ import annotations

import numpy as np

from secateur.graph.groups import IntArray
from secateur.latency.table import LatencyModel

_NEIGHBOURHOOD = 32  # channels to either side over which the price of one is averaged
_CHEAP = 0.5  # share of that price below which more channels count as given away


def widths_that_run_well(latency: LatencyModel, widths: IntArray) -> tuple[IntArray, ...]:
    """For each group, the widths that no wider one makes look wasteful.

    Each group is looked at alone, with the others as they are.

    Args:
        latency: tells milliseconds.
        widths: channels of each group as it is, shape ``(groups,)``.

    Returns:
        For each group its widths, ascending; the whole group is always one of them.

    Example:
        Four channels take as long as three, eight as long as five:

        >>> class Stepped:
        ...     def milliseconds(self, widths):
        ...         return np.ceil(widths[..., 0] / 4) + 0.001 * widths[..., 0]
        >>> widths_that_run_well(Stepped(), np.array([12]))
        (array([ 4,  8, 12]),)
    """
    found = []
    for group, whole in enumerate(widths.tolist()):
        tried = np.repeat(widths[None], whole, axis=0)
        tried[:, group] = np.arange(1, whole + 1)
        found.append(1 + np.flatnonzero(_pays(latency.milliseconds(tried))))
    return tuple(found)


def _pays(times: np.ndarray[tuple[int], np.dtype[np.float64]]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether each width runs well, from the times of the widths one, two, three and so on."""
    count = len(times)
    places = np.arange(count)
    left, right = np.maximum(places - _NEIGHBOURHOOD, 0), np.minimum(places + _NEIGHBOURHOOD, count - 1)
    price = np.maximum((times[right] - times[left]) / np.maximum(right - left, 1), 0.0)
    runs_well = np.ones(count, dtype=np.bool_)
    for more in range(1, min(_NEIGHBOURHOOD, count - 1) + 1):
        given_away = times[more:] - times[:-more] < _CHEAP * price[:-more] * more
        runs_well[:-more] &= ~given_away
    return runs_well
