"""Mask parts of a network one after the other, and measure each from the first step that reads it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from secateur.graph import ChannelGraph, Group
from secateur.ranks import Ranks
from secateur.recovery.captured_forward import CapturedForward
from secateur.recovery.partial_forward import PartialForward, removed_when_kept, with_channels_innermost

Unit = TypeVar("Unit", bound=Hashable)
Value = TypeVar("Value")

UNREAD = "nothing in the forward pass reads its channels"
"""The reason why a group is not measured that no step reads."""


@dataclass(frozen=True, eq=False)
class MaskedUnits:
    """Measure the groups, channels or branches of a network, each masked alone; created by :meth:`of`.

    Attributes:
        graph: the graph of the network.
        forward: its forward pass and the examples.
        tensors: its parameters and buffers by name.
        ranks: the processes that share the work.
    """

    graph: ChannelGraph
    forward: CapturedForward
    tensors: Mapping[str, Tensor]
    ranks: Ranks

    @classmethod
    def of(
        cls,
        graph: ChannelGraph,
        forward: CapturedForward,
        tensors: Mapping[str, Tensor],
        across_ranks: bool,
    ) -> MaskedUnits:
        """Lay out the network with its channels innermost in memory, if the numbers stay the same.

        Args:
            graph: the graph of the network.
            forward: its forward pass and the examples.
            tensors: its parameters and buffers by name; not changed.
            across_ranks: whether the processes of a distributed run share the work.
        """
        return cls(graph, *with_channels_innermost(forward, tensors), Ranks(across_ranks))

    def whole(self) -> PartialForward:
        """Start a pass through the network in which nothing more is masked."""
        return PartialForward(self.forward, self.graph.removed, self.tensors)

    def first_steps(self, groups: Iterable[Group]) -> tuple[dict[str, int], dict[str, str]]:
        """Find the first step that reads each group, and why groups that no step reads are not measured.

        Args:
            groups: groups of the network.

        Returns:
            The steps and the reasons, by name of the group.
        """
        steps = {
            group.name: self.forward.first_affected_step(removed_when_kept(self.graph, group, ()))
            for group in groups
        }
        return (
            {name: step for name, step in steps.items() if step is not None},
            {name: UNREAD for name, step in steps.items() if step is None},
        )

    def measure(
        self,
        whole: PartialForward,
        starts: Mapping[Unit, int],
        measure_one: Callable[[Unit, PartialForward], Value],
        *,
        order: Callable[[Unit], Any] | None = None,
        known: Mapping[Unit, Value] | None = None,
    ) -> Iterator[dict[Unit, Value]]:
        """Measure units in the order of their first steps.

        The processes measure one unit each in turns, and all get all values.

        Args:
            whole: a pass through the whole network, which is advanced from unit to unit.
            starts: for each unit the step to which the whole pass is advanced.
            measure_one: called with a unit and the whole pass, which it may fork but not advance.
            order: the key of another order; a step before the present one starts the whole pass again.
            known: values that are not measured again.

        Yields:
            The units of each turn with their values.
        """
        known = known or {}

        def value_of(unit: Unit) -> Value:
            if unit in known:
                return known[unit]
            whole.seek(starts[unit])
            return measure_one(unit, whole)

        for units, values in self.ranks.share_out(sorted(starts, key=order or starts.__getitem__), value_of):
            yield dict(zip(units, values, strict=True))
