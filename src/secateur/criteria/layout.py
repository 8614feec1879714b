"""Layout: where the channels of all prunable groups lie in one flat vector, and who reads them.

Shapes: ``channels`` is the number of channels of all prunable groups together, ``positions``
the length of the dimension in which a reader's input holds channels.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.errors import UsageError
from secateur.ranks import Ranks

if TYPE_CHECKING:
    from secateur.graph import ChannelGraph, Group


@dataclass(frozen=True, eq=False)
class Read:
    """A module whose input holds scored channels.

    Attributes:
        module: path of the module.
        dim: dimension of its first tensor input that holds the channels.
        index: place of each position's channel in the flat vector, int64, shape
            ``(positions,)``; ``layout.channels`` where the position is not scored.
    """

    module: str
    dim: int
    index: Tensor = field(repr=False)


@dataclass(frozen=True)
class Layout:
    """The prunable groups side by side, and the places that read them.

    Attributes:
        groups: the prunable groups, in the order of the network.
        channels: number of channels in all.
        reads: the reading modules, each once, in the order of the network.
        hidden: for each group of which some reader cannot be watched, the reason.
    """

    groups: tuple[Group, ...]
    channels: int
    reads: tuple[Read, ...]
    hidden: Mapping[str, str]

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """A flat vector of shape ``(channels,)`` cut up by group name."""
        parts = flat.split([group.channels for group in self.groups])
        return {group.name: part for group, part in zip(self.groups, parts, strict=True)}

    def groups_of(self, reads: Iterable[Read]) -> set[str]:
        """Names of the groups that any of the reads holds channels of."""
        mask = torch.zeros(self.channels + 1, dtype=torch.bool)
        for read in reads:
            mask[read.index] = True
        return {name for name, part in self.split(mask[:-1]).items() if part.any()}

    def seen_by(self, ranks: Ranks, seen: Container[Read]) -> list[Read]:
        """The reads that any of the processes has seen, in the order of the network."""
        mask = ranks.all_reduce_sum(torch.tensor([read in seen for read in self.reads], dtype=torch.int64))
        return [read for read, count in zip(self.reads, mask.tolist(), strict=True) if count]

    def unscored(self, seen: Iterable[Read]) -> dict[str, str]:
        """The groups that cannot be valued when only some reads were seen, with reasons.

        A group is left out rather than given a score that misses some of its readers; a reader
        that never ran (an auxiliary head in evaluation mode) misses nothing.
        """
        reached = self.groups_of(seen)
        reasons = dict(self.hidden)
        for group in self.groups:
            if group.name not in reached:
                reasons.setdefault(group.name, "nothing that reads its channels ran in the passes watched")
        return reasons


def lay_out(graph: ChannelGraph, modules: Mapping[str, nn.Module]) -> Layout:
    """The layout of a graph's prunable groups.

    A reader is watched at the input of its module, so only readers that read this input can be watched:
    what is contracted in the middle of a forward pass is not seen.

    Args:
        graph: the channel graph.
        modules: the network's modules by path, shared ones under each of their paths.

    Returns:
        The layout; a module that several readers name is watched once.
    """
    groups = tuple(group for group in graph.groups if group.prunable)
    sizes = [group.channels if group.prunable else 0 for group in graph.groups]
    start = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    channels = int(start[-1])
    width = np.array([*sizes, 0], dtype=np.int64)  # a position of no group (-1) is of the last, empty one
    watched: dict[int, Read] = {}
    hidden: list[Read] = []
    for reader in graph.readers:
        scored = width[reader.group] > 0
        index = torch.from_numpy(np.where(scored, start[reader.group] + reader.channel, channels))
        read = Read(reader.module, reader.dim, index)
        module = modules[reader.module]
        known = watched.setdefault(id(module), read) if reader.at_input else None
        if known is None or not _same(known, read):
            hidden.append(read)
    layout = Layout(groups, channels, tuple(read for read in watched.values() if _any(read, channels)), {})
    return Layout(groups, channels, layout.reads, _reasons(layout, hidden))


def _same(one: Read, other: Read) -> bool:
    return one.dim == other.dim and torch.equal(one.index, other.index)


def _any(read: Read, channels: int) -> bool:
    return bool((read.index < channels).any())


def _reasons(layout: Layout, hidden: list[Read]) -> dict[str, str]:
    """Why groups cannot be watched: a reader is out of sight, or nothing reads them."""
    reasons: dict[str, str] = {}
    for read in hidden:
        for name in layout.groups_of([read]):
            where = f"module {read.module!r}" if read.module else "the network itself"
            reasons.setdefault(name, f"{where} reads its channels inside its forward pass, out of sight")
    readable = layout.groups_of([*layout.reads, *hidden])
    for group in layout.groups:
        if group.name not in readable:
            reasons[group.name] = "nothing in the network contracts over its channels"
    return reasons


def modules_of(model: nn.Module, graph: ChannelGraph) -> tuple[nn.Module, dict[str, nn.Module]]:
    """The network that a graph describes, taken out of any wrapper, and its modules by path.

    Distributed and precision wrappers keep the network in an attribute ``module``.

    Args:
        model: the network, or a wrapper around it.
        graph: the channel graph that was traced from the network.

    Returns:
        The network itself and its modules, shared ones under each of their paths.

    Raises:
        UsageError: if the graph names modules that are not there.
    """
    wanted = [reader.module for reader in graph.readers]
    wanted += [member.module for group in graph.groups for member in group.members]
    inner: Any = model
    while True:
        modules = dict(inner.named_modules(remove_duplicate=False))
        missing = [path for path in wanted if path not in modules]
        if not missing:
            return inner, modules
        wrapped = getattr(inner, "module", None)
        if not isinstance(wrapped, nn.Module):
            raise UsageError(
                f"the network has no module {missing[0]!r}, which the channel graph names; "
                "pass the network that was traced, or trace this one"
            )
        inner = wrapped
