"""Define pruning plans: what stays of a network, as a value that can be printed, stored and applied."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from secateur.arguments import check_arguments
from secateur.errors import UsageError
from secateur.formats import count, table
from secateur.graph import ChannelGraph, Cost, Group, Role
from secateur.graph.branches import Replacement, outermost, with_parts
from secateur.graph.channel_graph import AttributeValue
from secateur.graph.groups import IntArray

__all__ = ["AttributeValue", "PruningPlan", "plan_from"]


@dataclass(frozen=True)
class PruningPlan:
    """The channels and residual branches that stay. A plan changes nothing by itself; ``apply_plan`` cuts.

    Groups that would keep all their channels are left out, and so are groups and branches that are parts of a
    removed branch. So two plans with the same effect are equal.

    Args:
        graph: the graph of the network that the plan is for.
        keep: indices of the channels that stay, in any order, for each group that loses some.
        without: names of the residual branches to remove, in any order.

    Attributes:
        keep: indices of the channels that stay, ascending, by group in the order of the network.
        without: names of the residual branches that are removed, in the order of the network.

    Raises:
        UsageError: a group is unknown, frozen or would lose all its channels, an index
            is out of range, given twice or not an integer, or a branch is unknown or cannot be removed.

    Example:
        >>> import torch
        >>> from secateur.graph import trace
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> plan = PruningPlan(trace(net, torch.randn(1, 4)), {"0": [7, 0, 2, 3, 4, 6]})
        >>> plan.removed, plan.cost_before.params, plan.cost_after.params
        ({'0': (1, 5)}, 58, 44)
        >>> print(plan)
        removes 2 of 8 prunable channels
        <BLANKLINE>
                     before  after   left
        parameters       58     44  75.9%
        MACs             48     36  75.0%
        size          232 B  176 B  75.9%
        activations    80 B   64 B  80.0%
        <BLANKLINE>
        group  before  after   left
        0           8      6  75.0%
    """

    graph: ChannelGraph = field(repr=False, compare=False)
    keep: Mapping[str, tuple[int, ...]]
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_arguments(graph=self.graph, keep=self.keep)
        object.__setattr__(self, "without", _removable(self.graph, self.without))
        given = {self.graph[name].name: channels for name, channels in self.keep.items()}
        checked = {
            group.name: _checked(group, given[group.name])
            for group in self.graph.groups
            if group.name in given
        }
        keep = {
            name: kept
            for name, kept in checked.items()
            if len(kept) < self.graph[name].channels and not self._is_removed(self.graph[name])
        }
        object.__setattr__(self, "keep", MappingProxyType(keep))

    def __hash__(self) -> int:
        return hash((tuple(self.keep.items()), self.without))

    def __reduce__(
        self,
    ) -> tuple[type[PruningPlan], tuple[ChannelGraph, dict[str, tuple[int, ...]], tuple[str, ...]]]:
        return PruningPlan, (self.graph, dict(self.keep), self.without)

    @cached_property
    def removed(self) -> dict[str, tuple[int, ...]]:
        """List the indices of the removed channels, ascending, for each group that loses some."""
        return {
            name: tuple(_others(kept, self.graph[name].channels).tolist()) for name, kept in self.keep.items()
        }

    @cached_property
    def channels_removed(self) -> int:
        """Count the removed channels."""
        return sum(self.graph[name].channels - len(kept) for name, kept in self.keep.items())

    @property
    def removes_nothing(self) -> bool:
        """Return whether all channels and all residual branches stay."""
        return not self.keep and not self.without

    @cached_property
    def widths(self) -> IntArray:
        """Count the channels that stay in every group of the graph, shape (groups,)."""
        return np.array(
            [len(self.keep.get(group.name, range(group.channels))) for group in self.graph.groups],
            dtype=np.int64,
        )

    @cached_property
    def cost_before(self) -> Cost:
        """Return the costs of the unpruned network."""
        return self.graph.cost()

    @cached_property
    def cost_after(self) -> Cost:
        """Compute the exact costs of the pruned network."""
        if self.without:
            return self.graph.after(self).cost()
        return self.graph.cost({name: len(kept) for name, kept in self.keep.items()})

    @cached_property
    def kept_slots(self) -> dict[tuple[str, int], IntArray]:
        """List the positions that stay, ascending, for each (tensor, dimension) that loses some of them."""
        stays: dict[tuple[str, int], npt.NDArray[np.bool_]] = {}
        for name, channels in self.removed.items():
            removed = np.array(channels, dtype=np.int64)
            for member in self.graph[name].members:
                place = member.tensor, member.dim
                if member.tensor in self.removed_tensors:
                    continue
                if place not in stays:
                    stays[place] = np.ones(self.graph.tensors[member.tensor][member.dim], dtype=np.bool_)
                stays[place][member.slots[removed]] = False
        return {place: np.flatnonzero(mask) for place, mask in stays.items()}

    @cached_property
    def attributes(self) -> tuple[AttributeValue, ...]:
        """List the integer attributes of modules that change, such as ``out_channels``."""
        return self.graph.attributes_after(self)

    @cached_property
    def replacements(self) -> tuple[Replacement, ...]:
        """List the modules that are replaced because their branch is removed, in the order of the network."""
        return tuple(item for name in self.without for item in self.graph.branch(name).replacements)

    @cached_property
    def branches_removed(self) -> int:
        """Count the removed residual branches, also those that are parts of others."""
        return len(with_parts(self.graph.branches, self.without))

    @cached_property
    def removed_tensors(self) -> frozenset[str]:
        """Name the parameters and buffers that are removed with residual branches."""
        return frozenset(tensor for name in self.without for tensor in self.graph.branch(name).tensors)

    def _is_removed(self, group: Group) -> bool:
        """Return whether all that holds a group's channels is removed with residual branches."""
        return all(member.tensor in self.removed_tensors for member in group.members)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain lists and numbers, for JSON; ``from_dict`` reads it back."""
        return {
            "groups": {
                name: {"channels": self.graph[name].channels, "keep": list(kept)}
                for name, kept in self.keep.items()
            },
            "without": list(self.without),
        }

    @classmethod
    def from_dict(cls, graph: ChannelGraph, data: Mapping[str, Any]) -> PruningPlan:
        """Read a plan back for a graph that it fits.

        Args:
            graph: the graph of the network that the plan was made for.
            data: what ``to_dict`` returned.

        Returns:
            The plan.

        Raises:
            UsageError: the data is not a plan, or its groups or their sizes are not those of the graph.
        """
        try:
            groups = {
                str(name): (int(entry["channels"]), entry["keep"]) for name, entry in data["groups"].items()
            }
            without = tuple(map(str, data.get("without", ())))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UsageError(f"this is not a stored plan: {type(error).__name__} ({error})") from error
        for name, (channels, _) in groups.items():
            if name not in graph or graph[name].channels != channels:
                found = f"has {graph[name].channels}" if name in graph else "is not there"
                raise UsageError(
                    f"the plan is for another network: its group '{name}' has {channels} channels, "
                    f"here it {found}"
                )
        return cls(graph, {name: keep for name, (_, keep) in groups.items()}, without)

    def __str__(self) -> str:
        total = sum(group.channels for group in self.graph.prunable)
        before, after = self.cost_before, self.cost_after
        costs = [
            _row("parameters", before.params, after.params, ""),
            _row("MACs", before.macs, after.macs, ""),
            _row("size", before.bytes, after.bytes, "B"),
            _row("activations", before.memory, after.memory, "B"),
        ]
        widths = [_row(name, self.graph[name].channels, len(kept)) for name, kept in self.keep.items()]
        removed = []
        if self.keep or not self.without:
            removed.append(f"{self.channels_removed:,} of {total:,} prunable channels")
        if self.without:
            removed.append(f"{self.branches_removed} of {len(self.graph.branches)} residual branches")
        lines = [f"removes {' and '.join(removed)}", ""]
        lines += table([("", "before", "after", "left"), *costs])
        if widths:
            lines += ["", *table([("group", "before", "after", "left"), *widths])]
        if self.without:
            lines += ["", "removed residual branches:", *(f"  {name}" for name in self.without)]
        return "\n".join(lines)


def plan_from(graph: ChannelGraph, remove: Mapping[str, Iterable[int]]) -> PruningPlan:
    """Make a plan that removes chosen channels and everything that is coupled with them.

    Args:
        graph: the graph of the network.
        remove: for each module, the positions of its output to remove (rows of the weight that
            writes its channels; entries of its parameters if it only carries channels). Any other
            name is the name of a group, with indices of its channels.

    Returns:
        The plan.

    Raises:
        UsageError: a name is unknown, a position is out of range, given twice, belongs to no
            channel or to a frozen group, or a group would lose all its channels.

    Example:
        >>> import torch
        >>> from secateur.graph import trace
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> plan_from(trace(net, torch.randn(1, 4)), {"0": [1, 5]}).removed
        {'0': (1, 5)}
    """
    check_arguments(graph=graph, remove=remove)
    removed: dict[str, set[int]] = {}
    for name, positions in remove.items():
        chosen = _integers(positions, f"the positions of '{name}'")
        for group, channel in _channels_at(graph, name, chosen):
            removed.setdefault(group, set()).add(channel)
    keep = {name: _others(channels, graph[name].channels) for name, channels in removed.items()}
    return PruningPlan(graph, {name: tuple(kept.tolist()) for name, kept in keep.items()})


def _channels_at(graph: ChannelGraph, name: str, positions: IntArray) -> list[tuple[str, int]]:
    """Find the (group, channel) pairs of positions of a module's output, or of channels of a group."""
    place = _output(graph, name)
    size = graph[name].channels if place is None else graph.tensors[place[0]][place[1]]
    outside = positions[(positions < 0) | (positions >= size)]
    if len(outside):
        raise UsageError(f"'{name}' has {size} positions, 0 to {size - 1}; there is no {outside[0]}")
    if place is None:
        return [(name, int(channel)) for channel in positions]
    owner, channel = np.full(size, -1), np.full(size, -1)
    for number, group in enumerate(graph.groups):
        for member in group.members:
            if (member.tensor, member.dim) == place:
                owner[member.slots] = number
                channel[member.slots] = np.arange(group.channels)[:, None]
    for position in positions[owner[positions] < 0]:
        raise UsageError(f"position {position} of '{name}' cannot be removed: it belongs to no channel group")
    return [(graph.groups[owner[position]].name, int(channel[position])) for position in positions]


def _output(graph: ChannelGraph, module: str) -> tuple[str, int] | None:
    """Find the first (tensor, dimension) of channels that a module writes or carries, if any."""
    for role in (Role.PRODUCER, Role.CARRIER):
        for group in graph.groups:
            for member in group.roles(role):
                if member.module == module:
                    return member.tensor, member.dim
    return None


def _removable(graph: ChannelGraph, names: object) -> tuple[str, ...]:
    """Check residual branches to remove, sort them, and leave out those that are parts of others."""
    if isinstance(names, str):
        raise UsageError(f"without takes a list of names of residual branches: write [{names!r}]")
    given: tuple[object, ...] = tuple(names) if isinstance(names, Iterable) else (names,)
    for item in given:
        if not isinstance(item, str):
            raise UsageError(f"without takes a list of names of residual branches, not {item!r}")
    chosen = [graph.branch(str(name)) for name in given]
    for branch in chosen:
        if not branch.prunable:
            raise UsageError(f"residual branch '{branch.name}' cannot be removed: {branch.reason}")
    found = outermost(graph.branches, [branch.name for branch in chosen])
    return tuple(branch.name for branch in graph.branches if branch.name in found)


def _checked(group: Group, channels: Sequence[int]) -> tuple[int, ...]:
    """Check the channels that stay in a group, and sort them; a frozen group must keep all."""
    kept = np.sort(_integers(channels, f"the channels of '{group.name}'"))
    if not len(kept):
        raise UsageError(
            f"group '{group.name}' would lose all its {group.channels} channels: keep at least one"
        )
    if len(kept) < min(group.min_channels, group.channels):
        raise UsageError(
            f"group '{group.name}' needs at least {group.min_channels} channels: with fewer, the network's "
            "code does something else"
        )
    if kept[0] < 0 or kept[-1] >= group.channels:
        wrong = kept[0] if kept[0] < 0 else kept[-1]
        raise UsageError(f"group '{group.name}' has channels 0 to {group.channels - 1}; there is no {wrong}")
    if not group.prunable and len(kept) < group.channels:
        raise UsageError(f"group '{group.name}' must stay whole: {group.reason}")
    return tuple(kept.tolist())


def _integers(numbers: Iterable[int], what: str) -> IntArray:
    """Convert distinct integers to an array."""
    try:
        array = np.asarray(numbers if isinstance(numbers, np.ndarray | Sequence) else list(numbers))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{what} must be a list of integers, not {numbers!r}") from error
    if array.shape == (0,):
        return np.empty(0, dtype=np.int64)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise UsageError(f"{what} must be a list of integers, not {numbers!r}")
    distinct, counts = np.unique(array, return_counts=True)
    if len(distinct) < len(array):
        raise UsageError(f"{what} name {distinct[counts > 1][0]} twice")
    return array.astype(np.int64)


def _others(channels: Collection[int], count: int) -> IntArray:
    """List the indices below ``count`` that are not among the channels."""
    mask = np.ones(count, dtype=np.bool_)
    mask[np.fromiter(channels, dtype=np.int64)] = False
    return np.flatnonzero(mask)


def _row(name: str, before: int, after: int, unit: str | None = None) -> tuple[str, ...]:
    """Format a line of a table; numbers are shortened if they have a unit, which may be empty."""
    words = [f"{number:,}" if unit is None else count(number, unit) for number in (before, after)]
    return name, *words, f"{after / before if before else 1.0:.1%}"
