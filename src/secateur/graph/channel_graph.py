"""The channel graph: what a user sees of a network's wiring, as it stands after any number of cuts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from secateur.errors import UsageError, closest
from secateur.graph.costs import Cost, CostModel
from secateur.graph.groups import Group, IntArray, Member, Reader, by_name
from secateur.graph.propagation.attention_units import Attention
from secateur.graph.wiring import Wiring

if TYPE_CHECKING:
    from collections.abc import Sequence


class Keeps(Protocol):
    """Anything that says which channels of which groups stay: a pruning plan."""

    @property
    def keep(self) -> Mapping[str, Sequence[int]]:
        """Kept channel indices by group name; absent groups stay whole."""


@dataclass(frozen=True)
class Keep:
    """A plan in its barest form, for trials."""

    keep: Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class AttributeValue:
    """The value that an integer attribute of a module has after a cut.

    Attributes:
        module: path of the module.
        name: of the attribute, such as ``out_channels``.
        index: place in the attribute's value if that is a tuple, else ``None``.
        value: the new size, a number of slots.

    Example:
        >>> import torch
        >>> from secateur.graph import trace
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> from secateur.plan import plan_from
        >>> [(edit.module, edit.name, edit.value) for edit in plan_from(
        ...     trace(net, torch.randn(1, 4)), {"0": [1, 5]}).attributes]
        [('0', 'out_features', 6), ('2', 'in_features', 6)]
    """

    module: str
    name: str
    index: int | None
    value: int


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """Which channels of a network hang together, and which may be cut.

    Immutable. Made by :func:`secateur.trace`; :meth:`after` gives the graph of the network that a
    plan leaves. Printing it shows groups, couplings, frozen groups with their reasons and costs.

    Attributes:
        wiring: the network as it was traced.
        alive: for each group of the wiring, the channels that are still there.

    Example:
        >>> import torch
        >>> from secateur.graph import trace
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> graph = trace(net, torch.randn(1, 4))
        >>> graph["0"].channels, graph["2"].reason, graph.cost({"0": 6}).params
        (8, 'is an output of the network', 44)
    """

    wiring: Wiring = field(repr=False)
    alive: tuple[IntArray, ...] = field(repr=False)

    @classmethod
    def whole(cls, wiring: Wiring) -> ChannelGraph:
        """The graph of a network of which nothing has been cut."""
        return cls(wiring, tuple(np.arange(group.channels) for group in wiring.groups))

    # -- groups ----------------------------------------------------------------------------

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """All groups, prunable and frozen, in the order of the network."""
        return tuple(
            self._current(group, alive) for group, alive in zip(self.wiring.groups, self.alive, strict=True)
        )

    @property
    def prunable(self) -> tuple[Group, ...]:
        """The groups of which channels may be removed."""
        return tuple(group for group in self.groups if group.prunable)

    @property
    def frozen(self) -> tuple[Group, ...]:
        """The groups that must stay whole; each carries its reason."""
        return tuple(group for group in self.groups if not group.prunable)

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """What is removed from each attention, and what could be removed instead."""
        return self.wiring.attentions

    def __getitem__(self, name: str) -> Group:
        """The group of a name.

        Raises:
            UsageError: there is no such group; the message lists names that come close.
        """
        found = self._by_name.get(name)
        if found is None:
            hint = closest(name, [group.name for group in self.groups])
            raise UsageError(f"no channel group '{name}' in this network{hint}")
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    @cached_property
    def _by_name(self) -> dict[str, Group]:
        return by_name(self.groups)

    # -- tensors, readers, costs -----------------------------------------------------------

    @cached_property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every parameter and buffer, by qualified name."""
        return {
            name: tuple(int(self._stays(name, dim).sum()) for dim in range(len(shape)))
            for name, shape in self.wiring.shapes.items()
        }

    @cached_property
    def readers(self) -> tuple[Reader, ...]:
        """The places where masking a channel has an effect."""
        place = self._new_channel
        readers = []
        for read in self.wiring.places:
            labels = read.labels[(read.labels < 0) | ~self.removed[read.labels]]
            group = np.where(labels >= 0, self.wiring.group_of[labels], -1)
            channel = np.where(group >= 0, place[labels], -1)
            readers.append(Reader(read.module, read.tensor, read.dim, group, channel, read.at_input))
        return tuple(readers)

    @property
    def cost_model(self) -> CostModel:
        """The costs as exact polynomials of the widths of :attr:`groups`."""
        return self.wiring.cost_model

    @cached_property
    def widths(self) -> IntArray:
        """Number of channels of every group."""
        return np.array([len(alive) for alive in self.alive], dtype=np.int64)

    def cost(self, keep: Mapping[str, int] | None = None) -> Cost:
        """Exact cost of the network when groups are narrowed, without running it.

        Args:
            keep: number of channels that stay, by group name; absent groups stay as they are.

        Returns:
            Parameters, MACs, bytes and activation memory.
        """
        widths = self.widths.copy()
        for name, count in (keep or {}).items():
            widths[self.index(name)] = count
        return Cost(*(int(number) for number in self.cost_model.evaluate(widths)))

    def index(self, name: str) -> int:
        """Position of a group in :attr:`groups`."""
        self[name]
        return self._index[name]

    @cached_property
    def _index(self) -> dict[str, int]:
        return {group.name: number for number, group in enumerate(self.groups)}

    # -- cutting ---------------------------------------------------------------------------

    def after(self, plan: Keeps) -> ChannelGraph:
        """The graph of the network that a plan leaves; nothing is traced again.

        Args:
            plan: a plan made for this graph.

        Returns:
            The same groups by the same names, with the kept channels numbered from zero.
        """
        keep = plan.keep
        return ChannelGraph(
            self.wiring,
            tuple(
                alive[np.asarray(keep[group.name], dtype=np.int64)] if group.name in keep else alive
                for group, alive in zip(self.wiring.groups, self.alive, strict=True)
            ),
        )

    def attributes_after(self, plan: Keeps) -> tuple[AttributeValue, ...]:
        """The integer attributes of modules that a plan changes, with their new values."""
        before, after = self.removed, self.after(plan).removed
        changes = []
        for item in self.wiring.attributes:
            old = len(item.labels) - int(before[item.labels].sum())
            new = len(item.labels) - int(after[item.labels].sum())
            if new != old:
                changes.append(AttributeValue(item.module, item.name, item.index, new))
        return tuple(dict.fromkeys(changes))

    @cached_property
    def removed(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Per slot of the wiring, whether it has been cut."""
        stays = np.zeros(int(self._starts[-1]) + 1, dtype=bool)
        for start, alive in zip(self._starts, self.alive, strict=False):
            stays[start + alive] = True
        stays[-1] = True
        inside = self.wiring.group_of >= 0
        key = np.where(inside, self._starts[self.wiring.group_of] + self.wiring.channel_of, -1)
        return ~stays[key]

    def span(self, tensor: str, dim: int) -> slice:
        """The slots of one dimension of a tensor, in the original numbering.

        Args:
            tensor: qualified name of a parameter or buffer.
            dim: the dimension.
        """
        start, size = self.wiring.spans[tensor, dim]
        return slice(start, start + size)

    def positions(self, tensor: str, dim: int) -> IntArray:
        """The original positions along a tensor's dimension that are still there.

        Args:
            tensor: qualified name of a parameter or buffer.
            dim: the dimension.
        """
        return np.flatnonzero(self._stays(tensor, dim))

    def left_of(self, name: str, tensor: Tensor) -> Tensor:
        """What is left of a parameter or buffer of the original sizes.

        Args:
            name: its qualified name.
            tensor: in the shape that it was traced with.
        """
        for dim, size in enumerate(tensor.shape):
            index = self.positions(name, dim)
            if len(index) < size:
                tensor = tensor.index_select(dim, torch.from_numpy(index).to(tensor.device))
        return tensor

    @cached_property
    def _starts(self) -> IntArray:
        sizes = [group.channels for group in self.wiring.groups]
        return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    @cached_property
    def _new_channel(self) -> IntArray:
        """Per slot, the index of its channel among those still there."""
        place = np.full(int(self._starts[-1]) + 1, -1, dtype=np.int64)
        for start, alive in zip(self._starts, self.alive, strict=False):
            place[start + alive] = np.arange(len(alive))
        inside = self.wiring.group_of >= 0
        key = np.where(inside, self._starts[self.wiring.group_of] + self.wiring.channel_of, -1)
        return place[key]

    def _stays(self, tensor: str, dim: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        return ~self.removed[self.span(tensor, dim)]

    def _current(self, group: Group, alive: IntArray) -> Group:
        """A group of the wiring with the channels and positions that are left."""
        if len(alive) == group.channels and not self.removed.any():
            return group
        members = []
        for member in group.members:
            place = np.cumsum(self._stays(member.tensor, member.dim)) - 1
            members.append(Member(member.tensor, member.dim, member.role, place[member.slots[alive]]))
        return Group(group.name, tuple(members), group.reason, group.min_channels)

    # -- reading ---------------------------------------------------------------------------

    def __str__(self) -> str:
        from secateur.graph.describe import describe

        return describe(self)
