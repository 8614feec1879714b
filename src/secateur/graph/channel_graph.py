"""Define the channel graph: what a user sees of a network's wiring, after any number of cuts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from secateur.errors import UsageError, closest
from secateur.graph.branches import Replacement, ResidualBranch, outermost, with_parts
from secateur.graph.costs import Cost, CostModel
from secateur.graph.groups import Group, IntArray, Member, Reader
from secateur.graph.propagation.attention_units import Attention
from secateur.graph.wiring import Wiring

if TYPE_CHECKING:
    from collections.abc import Sequence


class PlanLike(Protocol):
    """Anything that says which channels and which residual branches stay: a pruning plan."""

    @property
    def keep(self) -> Mapping[str, Sequence[int]]:
        """Return the kept channel indices by group name; absent groups stay whole."""

    @property
    def without(self) -> Collection[str]:
        """Return the names of the residual branches that are removed."""


@dataclass(frozen=True)
class Keep:
    """A plan in its barest form, for trials."""

    keep: Mapping[str, Sequence[int]]
    without: Collection[str] = ()


@dataclass(frozen=True)
class AttributeValue:
    """The value that an attribute of a module has after a cut.

    Attributes:
        module: path of the module.
        name: of the attribute, such as ``out_channels``.
        index: place in the attribute's value if that is a tuple, else ``None``.
        value: the new size, a number of slots; or a setting of a module that lost a residual branch.

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
    """Which channels of a network belong together, and which channels and residual branches may be removed.

    Immutable. Made by :func:`secateur.trace`; :meth:`after` gives the graph of the network that a
    plan leaves. Printing it shows groups, couplings, frozen groups with their reasons and costs.

    Attributes:
        wiring: the network as it was traced.
        alive: for each group of the wiring, the channels that are still there. Groups that were removed with
            a residual branch keep theirs.
        absent: names of the residual branches that were removed, without those that are parts of others.

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
    absent: frozenset[str] = frozenset()

    @classmethod
    def whole(cls, wiring: Wiring) -> ChannelGraph:
        """Make the graph of a network before any cut."""
        return cls(wiring, tuple(np.arange(group.channels) for group in wiring.groups))

    # -- groups ----------------------------------------------------------------------------

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """List all groups, prunable and frozen, in the order of the network."""
        return tuple(
            self._current(group, alive) for group, alive in zip(self.wiring.groups, self.alive, strict=True)
        )

    @property
    def prunable(self) -> tuple[Group, ...]:
        """List the groups whose channels may be removed."""
        return tuple(group for group in self.groups if group.prunable)

    @property
    def frozen(self) -> tuple[Group, ...]:
        """List the groups that must stay whole, each with its reason."""
        return tuple(group for group in self.groups if not group.prunable)

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """List what is removed from each attention, and what could be removed instead."""
        return self.wiring.attentions

    def __getitem__(self, name: str) -> Group:
        """Return the group of a name.

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
        return {group.name: group for group in self.groups}

    # -- residual branches ------------------------------------------------------------------

    @cached_property
    def branches(self) -> tuple[ResidualBranch, ...]:
        """List the residual branches that are still there, in the order of the network."""
        return tuple(branch for branch in self.wiring.branches if branch.name not in self._gone)

    def branch(self, name: str) -> ResidualBranch:
        """Return the residual branch of a name.

        Raises:
            UsageError: there is no such branch; the message lists names that come close.
        """
        found = next((branch for branch in self.branches if branch.name == name), None)
        if found is None:
            hint = closest(name, [branch.name for branch in self.branches])
            raise UsageError(f"no residual branch '{name}' in this network{hint}")
        return found

    @cached_property
    def _gone(self) -> frozenset[str]:
        """Collect the names of the removed branches, and of those that are parts of them."""
        return with_parts(self.wiring.branches, self.absent)

    @property
    def replacements(self) -> tuple[Replacement, ...]:
        """List the modules that removed residual branches lost, in the order of the network."""
        return tuple(
            item
            for branch in self.wiring.branches
            if branch.name in self.absent
            for item in branch.replacements
        )

    def is_replaced(self, path: str) -> bool:
        """Return whether a module, or one around it, was replaced when a residual branch was removed."""
        return any(f"{path}.".startswith(f"{item.path}.") for item in self.replacements)

    # -- tensors, readers, costs -----------------------------------------------------------

    @cached_property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of every parameter and buffer, by qualified name."""
        return {
            name: tuple(int(self._stays(name, dim).sum()) for dim in range(len(shape)))
            for name, shape in self.wiring.shapes.items()
            if name not in self._removed_tensors
        }

    @cached_property
    def _removed_tensors(self) -> frozenset[str]:
        """Collect the names of the parameters and buffers that were removed with residual branches."""
        return frozenset(
            name for branch in self.wiring.branches if branch.name in self.absent for name in branch.tensors
        )

    @cached_property
    def readers(self) -> tuple[Reader, ...]:
        """List the places where masking a channel has an effect."""
        place = self._new_channel
        readers = []
        for read in self.wiring.distinct_reads:
            if read.tensor in self._removed_tensors:
                continue
            labels = read.labels[(read.labels < 0) | ~self.removed[read.labels]]
            group = np.where(labels >= 0, self.wiring.group_of[labels], -1)
            channel = np.where(group >= 0, place[labels], -1)
            readers.append(Reader(read.module, read.tensor, read.dim, group, channel, read.at_input))
        return tuple(readers)

    @cached_property
    def cost_model(self) -> CostModel:
        """Return the costs as polynomials of the widths of :attr:`groups`, with the branches that are there.

        ``wiring.cost_model`` is a function of the branches too.
        """
        return self.wiring.cost_model.with_branches(self.present)

    @cached_property
    def present(self) -> IntArray:
        """Return 1 for each branch of the traced network that is still there, 0 for the others."""
        return np.array([branch.name not in self._gone for branch in self.wiring.branches], dtype=np.int64)

    @property
    def units(self) -> IntArray:
        """Return the widths, then 1 or 0 for each residual branch unless none was removed."""
        return np.append(self.widths, self.present) if self.absent else self.widths

    @cached_property
    def widths(self) -> IntArray:
        """Number of channels of every group."""
        return np.array([group.channels for group in self.groups], dtype=np.int64)

    def cost(self, keep: Mapping[str, int] | None = None) -> Cost:
        """Compute the exact cost of the network if groups are narrowed, without running it.

        Args:
            keep: number of channels that stay, by group name; absent groups stay as they are.

        Returns:
            Parameters, MACs, bytes and activation memory.
        """
        widths = self.widths.copy()
        for name, count in (keep or {}).items():
            widths[self.index(name)] = count
        return self.wiring.cost_model.cost(np.append(widths, self.present))

    def index(self, name: str) -> int:
        """Return the position of a group in :attr:`groups`."""
        self[name]
        return self._index[name]

    @cached_property
    def _index(self) -> dict[str, int]:
        return {group.name: number for number, group in enumerate(self.groups)}

    # -- cutting ---------------------------------------------------------------------------

    def after(self, plan: PlanLike) -> ChannelGraph:
        """Make the graph of the network that a plan leaves; nothing is traced again.

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
            outermost(self.wiring.branches, self.absent.union(plan.without)),
        )

    def attributes_after(self, plan: PlanLike) -> tuple[AttributeValue, ...]:
        """List the integer attributes of modules that a plan changes, with their new values."""
        smaller = self.after(plan)
        before, after = self.removed, smaller.removed
        changes = []
        for item in self.wiring.attributes:
            if smaller.is_replaced(item.module):
                continue
            old = len(item.labels) - int(before[item.labels].sum())
            new = len(item.labels) - int(after[item.labels].sum())
            if new != old:
                changes.append(AttributeValue(item.module, item.name, item.index, new))
        changes += [
            AttributeValue(path, name, None, value)
            for branch in self.wiring.branches
            if branch.name in smaller.absent - self.absent
            for path, name, value in branch.settings
            if not smaller.is_replaced(path)
        ]
        return tuple(dict.fromkeys(changes))

    @cached_property
    def removed(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Mark the slots of the wiring that have been cut; the slots of the residual branches are last."""
        stays = np.zeros(int(self._starts[-1]) + 1, dtype=bool)
        for start, alive in zip(self._starts, self.alive, strict=False):
            stays[start + alive] = True
        stays[-1] = True
        branches = [branch.name in self._gone for branch in self.wiring.branches]
        return np.concatenate([~stays[self._channel_of], np.array([*branches, False])])

    def span(self, tensor: str, dim: int) -> slice:
        """Return the slots of one dimension of a tensor, in the original numbering.

        Args:
            tensor: qualified name of a parameter or buffer.
            dim: the dimension.
        """
        start, size = self.wiring.spans[tensor, dim]
        return slice(start, start + size)

    def positions(self, tensor: str, dim: int) -> IntArray:
        """Return the original positions along a tensor's dimension that are still there.

        Args:
            tensor: qualified name of a parameter or buffer.
            dim: the dimension.
        """
        return np.flatnonzero(self._stays(tensor, dim))

    def left_of(self, name: str, tensor: Tensor) -> Tensor:
        """Select what is left of a parameter or buffer of the original sizes.

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
        """Compute, per slot, the index of its channel among those still there."""
        index = np.full(int(self._starts[-1]) + 1, -1, dtype=np.int64)
        for start, alive in zip(self._starts, self.alive, strict=False):
            index[start + alive] = np.arange(len(alive))
        return index[self._channel_of]

    @cached_property
    def _channel_of(self) -> IntArray:
        """Number, per slot, its channel among the channels of all groups; -1 for none."""
        inside = self.wiring.group_of >= 0
        return np.where(inside, self._starts[self.wiring.group_of] + self.wiring.channel_of, -1)

    def _stays(self, tensor: str, dim: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        return ~self.removed[self.span(tensor, dim)]

    def _current(self, group: Group, alive: IntArray) -> Group:
        """Return a group of the wiring with the channels and positions that are left."""
        if len(alive) == group.channels and not self.removed.any():
            return group
        members = []
        for member in group.members:
            if member.tensor in self._removed_tensors:
                continue
            place = np.cumsum(self._stays(member.tensor, member.dim)) - 1
            members.append(Member(member.tensor, member.dim, member.role, place[member.slots[alive]]))
        reason = group.reason if members else "was removed with a residual branch"
        return Group(group.name, tuple(members), reason, group.min_channels)

    # -- reading ---------------------------------------------------------------------------

    def __str__(self) -> str:
        from secateur.graph.describe import describe

        return describe(self)
