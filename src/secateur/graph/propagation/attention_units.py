"""Find what can be removed from attention: heads, query heads of shared keys and values, or places in heads.

A layer that computes queries, keys or values for all heads writes a rectangle: heads times the width of a
head, or key/value heads times the query heads of each times their width. One axis of it can be free. Which
axis means what is found by a walk through the program that leaves all axes open: in products of two such
values, there is one product for each head, and the width of a head is a dimension of the factors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType

import numpy as np

from secateur.errors import UsageError
from secateur.graph.groups import IntArray
from secateur.graph.labels import Labels, Value
from secateur.graph.propagation.axis_choices import WHOLE

HEADS, QUERY_HEADS, HEAD_DIM = "heads", "query_heads", "head_dim"

UNITS: Mapping[str, str] = MappingProxyType(
    {
        HEADS: "whole heads; a key/value head goes together with the query heads that share it",
        QUERY_HEADS: "the same query head of every key/value head; keys and values stay",
        HEAD_DIM: "the same place in every head, and with rotary positions in every layer",
    }
)
"""What may be removed from attention, in the order of preference, with what that means."""

UnitAxes = dict[str, dict[str, dict[str, int]]]
"""For each module with attention, and each unit that it has, the axis of each operator to leave free."""

_Pair = tuple[int, int]


@dataclass(frozen=True)
class Attention:
    """The unit that is removed from an attention.

    Attributes:
        module: path of the module that multiplies queries with keys.
        unit: one of :data:`UNITS`.
        others: units that could be removed instead.
        labels: the free channels of queries, keys and values, as slots.
    """

    module: str
    unit: str
    others: tuple[str, ...]
    labels: IntArray = field(repr=False, compare=False)


@dataclass
class OpenAxes:
    """What the axes of rectangles are used for, found by a walk that leaves all of them open."""

    owners: dict[int, tuple[tuple[str, int], ...]] = field(default_factory=dict)
    """For each slot of an open axis, the operator that made it and the place of the axis; for axes that were
    merged all of them, the outer one first."""
    parents: dict[tuple[str, int], tuple[str, int]] = field(default_factory=dict)
    """For each axis of an axis that was split again, the axis that was split."""
    uses: dict[str, dict[tuple[str, int], str]] = field(default_factory=lambda: defaultdict(dict))
    """For each module that multiplies such values, what each axis is used for."""
    grouped: set[tuple[str, int]] = field(default_factory=set)
    """Axes of query heads of which several share a key/value head."""

    def opened(self, axis: tuple[str, int], labels: IntArray, whole: IntArray) -> None:
        """Record the labels of an open axis.

        Args:
            axis: the operator, and the place of the axis.
            labels: of the axis.
            whole: labels of the rectangle, which may itself be an open axis.
        """
        self.owners |= dict.fromkeys(labels.tolist(), (axis,))
        for owners in self._owners(whole):
            self.parents[axis] = owners[0]

    def merged(self, outer: IntArray, inner: IntArray, labels: IntArray) -> None:
        """Record that two open axes became one.

        Args:
            outer: labels of the outer axis.
            inner: labels of the inner axis.
            labels: of the new one.
        """
        for slot, one in zip(labels.tolist(), np.repeat(outer, len(inner)).tolist(), strict=True):
            self.owners[slot] = self.owners[one] + self.owners[int(inner[0])]

    def is_open(self, labels: Labels) -> bool:
        """Return whether labels belong to an open axis."""
        return labels is not None and any(slot in self.owners for slot in labels.tolist())

    def record_product(
        self, module: str, sides: tuple[Value, Value], shared: Sequence[_Pair], contracted: Sequence[_Pair]
    ) -> None:
        """Record a product of two values.

        Args:
            module: path of the module that multiplies.
            sides: the two factors.
            shared: pairs of dimensions, one of each factor, for each index of which there is a product.
            contracted: pairs of dimensions over which the product sums.
        """
        if not all(any(self.is_open(labels) for labels in side.labels) for side in sides):
            return
        for left, right in shared:
            one, other = sides[0].labels[left], sides[1].labels[right]
            self._record_heads(module, one, other)
            self._record_heads(module, other, one)
        # Queries and keys are contracted over the width of a head; what remains of either is a head.
        of_heads = any(
            self.is_open(side.labels[dim])
            for pair in contracted
            for side, dim in zip(sides, pair, strict=True)
        )
        for place, side in enumerate(sides):
            used = {pair[place] for pair in shared}
            inner = {pair[place] for pair in contracted}
            for dim, labels in enumerate(side.labels):
                if dim not in used:
                    use = QUERY_HEADS if of_heads and dim not in inner else HEAD_DIM
                    for owners in self._owners(labels):
                        self._record(module, owners, use)

    def _record_heads(self, module: str, own: Labels, other: Labels) -> None:
        """Record what one of two dimensions is used for that meet head by head."""
        served, serving = (
            len(set(labels.tolist())) if labels is not None and self.is_open(labels) else 0
            for labels in (own, other)
        )
        several = 0 < serving < served
        for owners in self._owners(own):
            self._record(module, owners[:1], HEADS if serving else QUERY_HEADS)
            self._record(module, owners[1:], QUERY_HEADS if several else HEADS)
            if several and len(owners) == 1:
                self.grouped |= set(owners)

    def _record(self, module: str, owners: Iterable[tuple[str, int]], use: str) -> None:
        for owner in owners:
            self.uses[module].setdefault(owner, use)
            parent = self.parents.get(owner)
            if parent is not None:
                self._record(module, [parent], HEAD_DIM if use == HEAD_DIM else HEADS)
                self.grouped |= {parent} if use == QUERY_HEADS else set()

    def _owners(self, labels: Labels) -> set[tuple[tuple[str, int], ...]]:
        """Find the open axes that labels belong to."""
        found = [] if labels is None else labels.tolist()
        return {self.owners[slot] for slot in found if slot in self.owners}

    def axes(self) -> UnitAxes:
        """List the axes that each unit leaves free, for each module with attention."""
        return {module: found for module in self.uses if (found := self._units(module))}

    def _units(self, module: str) -> dict[str, dict[str, int]]:
        uses: dict[str, dict[str, int]] = defaultdict(dict)
        for (node, place), use in self.uses[module].items():
            uses[node].setdefault(use, place)
        queries = {
            node: own.get(QUERY_HEADS, own.get(HEADS))
            for node, own in uses.items()
            if QUERY_HEADS in own or (node, own.get(HEADS)) in self.grouped
        }
        units = {}
        for unit in UNITS:
            if unit == QUERY_HEADS:
                chosen = {node: queries.get(node, WHOLE) for node in uses} if queries else {}
            else:
                chosen = {node: own[unit] for node, own in uses.items() if unit in own}
            if all(node in chosen or self._is_within(node, uses[node], chosen) for node in uses):
                units[unit] = {node: place for node, place in chosen.items() if place is not None}
        return units

    def _is_within(self, node: str, uses: Mapping[str, int], chosen: Mapping[str, int | None]) -> bool:
        """Return whether an operator splits an axis that is not the free axis of its rectangle."""
        parents = (self.parents.get((node, place)) for place in uses.values())
        return any(parent is not None and chosen.get(parent[0], parent[1]) != parent[1] for parent in parents)


def each_unit_once(axes: UnitAxes) -> dict[str, dict[str, str]]:
    """List, for each unit, a choice of it for all modules that have it; the others get their first unit."""
    there = [unit for unit in UNITS if any(unit in own for own in axes.values())]
    return {
        unit: {path: unit if unit in own else next(iter(own)) for path, own in axes.items()} for unit in there
    }


def asked_units(
    asked: str | Mapping[str, str] | None, modules: Mapping[str, Iterable[str]]
) -> dict[str, str]:
    """Find the unit that the user wants for each attention.

    Args:
        asked: one unit for all attentions, or units by paths or patterns of modules; the last one that fits
            counts.
        modules: for each module with attention, the units that it has.

    Raises:
        UsageError: there is no such unit, no such module, or the module does not have the unit.
    """
    wanted: dict[str, str] = {}
    for pattern, unit in ({"*": asked} if isinstance(asked, str) else asked or {}).items():
        if unit not in UNITS:
            raise UsageError(f"attention: there is no unit '{unit}'; write one of {', '.join(UNITS)}")
        found = [path for path in modules if fnmatchcase(path, pattern)]
        if not found:
            where = (
                f"'{pattern}' names no attention" if modules else "this network has no attention with heads"
            )
            known = f"; there are {', '.join(modules)}" if modules else ""
            raise UsageError(f"attention: {where}{known}")
        wanted |= dict.fromkeys(found, unit)
    for path, unit in wanted.items():
        if unit not in modules[path]:
            raise UsageError(
                f"attention: '{path}' has no unit '{unit}'; it has {', '.join(modules[path]) or 'none'}"
            )
    return wanted
