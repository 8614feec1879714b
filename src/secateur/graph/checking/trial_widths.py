"""Choose which channels of each group a trial keeps."""

from __future__ import annotations

from enum import Enum

import numpy as np

from secateur.graph.channel_graph import ChannelGraph
from secateur.graph.groups import Group


class Share(Enum):
    """Which channels of each group a trial keeps."""

    HALF = "about half of them"
    FEWEST = "as few as the group may have"
    ONE_REMOVED = "all but one"


def kept_channels(
    generator: np.random.Generator, group: Group, share: Share, least: int = 1, spare: int = 0
) -> list[int]:
    """Draw the channels of a group that a trial keeps.

    Args:
        generator: draws them.
        group: the group.
        share: how many of them.
        least: how many the group needs.
        spare: how many to keep beyond that, if as few as possible are kept.
    """
    if share is Share.HALF:
        # Of each group another share: with one for all, sizes that fit by accident would pass.
        return about_half(generator, group.channels, least)
    if share is Share.ONE_REMOVED:
        gone = int(generator.integers(group.channels))
        return [channel for channel in range(group.channels) if channel != gone]
    count = min(least + spare, group.channels)
    return sorted(generator.permutation(group.channels)[:count].tolist())


def about_half(generator: np.random.Generator, channels: int, least: int = 1) -> list[int]:
    """Draw about half of a number of channels, at least as many as needed, never all.

    The kept set is never symmetric under an exchange of channels in pairs (neighbours, halves, ends), since a
    coupling of the pairs would go unnoticed. An odd number of channels cannot be; if one channel is its own
    partner, it is the middle one.
    """
    count = min(max(least, round(channels * generator.uniform(0.3, 0.7))), channels - 1)
    if channels % 2 == 0:
        count |= 1
    while True:
        kept = np.sort(generator.permutation(channels)[:count])
        if not np.array_equal(channels - 1 - kept[::-1], kept):
            some: list[int] = kept.tolist()
            return some


def least_widths(graph: ChannelGraph) -> dict[str, int]:
    """Find groups that must keep several channels.

    The unbiased variance of one value is not defined, and as many channels as are picked must stay.
    """
    unbiased = ("aten.var", "aten.std")
    wiring = graph.wiring
    nodes = {node.name: node for node in wiring.program.graph.nodes}
    names: dict[str, int] = {}
    for item in wiring.statistics:
        if str(nodes[item.node].target).startswith(unbiased):
            for _, value in item.arguments:
                kept = {id(labels) for labels in item.result.labels if labels is not None}
                for labels in value.labels:
                    if labels is not None and id(labels) not in kept:
                        found = set(wiring.group_of[labels].tolist()) - {-1}
                        names |= {wiring.groups[number].name: 2 for number in found}
    for read in wiring.reads:
        numbers, counts = np.unique(wiring.group_of[read.labels], return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            if read.least > 1 and number >= 0:
                group = wiring.groups[number]
                slots = max(1, count // group.channels)  # of each channel among those that are ranked
                least = min(group.channels, -(-read.least // slots))
                names[group.name] = max(least, names.get(group.name, 1))
    return names
