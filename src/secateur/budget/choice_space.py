"""Define what a plan chooses: one width for each group and each depth unit, or for several that are tied."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from secateur.budget.depth import Depth, vanished
from secateur.budget.ties import kinds_of

if TYPE_CHECKING:
    from secateur.graph import ChannelGraph
    from secateur.graph.groups import BoolArray, IntArray


@dataclass(frozen=True, eq=False)
class ChoiceSpace:
    """The choices of widths of a network.

    *Units* are the channel groups, then the depth units. Units that have one width are *tied*. A *choice* has
    one width for each tie: the width of its groups, or whether its depth unit is present (1 or 0). Ties of
    depth units, one for each, come last.

    Attributes:
        graph: the graph of the network.
        depth: the branches that may be absent.
        ties: for each unit, the place of its width in a choice, shape (units,).
    """

    graph: ChannelGraph
    depth: Depth
    ties: IntArray = field(repr=False)

    @classmethod
    def of(
        cls, graph: ChannelGraph, depth: Depth | None = None, *, uniform_widths: bool = False
    ) -> ChoiceSpace:
        """Create the choices for a network.

        Args:
            graph: the graph of the network.
            depth: the branches that may be absent; none by default.
            uniform_widths: whether groups of one kind are tied; otherwise nothing is.
        """
        depth = Depth.of(graph, ()) if depth is None else depth
        kinds = kinds_of(graph) if uniform_widths else np.arange(len(graph.groups), dtype=np.int64)
        return cls(graph, depth, np.append(kinds, np.arange(len(depth.units)) + kinds.max(initial=-1) + 1))

    @property
    def size(self) -> int:
        """Return the number of ties."""
        return int(self.ties.max(initial=-1)) + 1

    @property
    def is_tied(self) -> bool:
        """Return whether any units are tied."""
        return self.size < len(self.ties)

    @cached_property
    def is_branch(self) -> BoolArray:
        """Return whether each tie is a depth unit, shape (ties,)."""
        return np.asarray(np.arange(self.size) >= self.size - len(self.depth.units))

    def expand(self, choices: IntArray) -> IntArray:
        """Return the widths of all units, shape (..., units), for choices of shape (..., ties)."""
        return np.asarray(choices[..., self.ties])

    @cached_property
    def inside(self) -> BoolArray:
        """Return whether all units of a tie vanish with a depth unit, shape (depth units, ties)."""
        outside = np.zeros((self.size, len(self.depth.units)), dtype=np.int64)
        np.add.at(outside, self.ties, ~self.depth.inside.T)
        return np.asarray(outside.T == 0)

    def alive(self, choices: IntArray) -> BoolArray:
        """Return whether each tie has a unit outside of all absent branches; shape of ``choices``."""
        return ~vanished(self.inside, choices)
