"""Find the widths that each group may take, and explain why a budget cannot be met."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np

from secateur.budget.choice_space import ChoiceSpace
from secateur.budget.depth import branch_names, enclosing_paths, find_depth, fits
from secateur.budget.limits import QUANTITIES, CostEvaluator, amount_of, amount_words
from secateur.budget.ties import common_widths
from secateur.budget.widths import Bounds, Widths
from secateur.errors import BudgetError, UsageError, closest
from secateur.graph import ChannelGraph, Group, Role
from secateur.graph.groups import IntArray
from secateur.latency import LatencyModel, efficient_widths
from secateur.plan import PruningPlan

WidthOptions = tuple[IntArray, ...]
"""For each group the widths that it may have, ascending; the last is the whole group."""


@dataclass(frozen=True)
class Unscored:
    """Names of groups and residual branches that stay whole, because they could not be scored."""

    groups: frozenset[str] = frozenset()
    branches: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class FeasibleWidths:
    """The widths that each tie may take: the groups that have one width, or a depth unit.

    Attributes:
        space: the network and the choices of its widths.
        original: channels of each group of a tie as it is, shape (ties,); 1 for a depth unit.
        least: the smallest width of each tie.
        most: the largest width of each tie.
        options: for each tie the widths from the least to the original one, ascending.
    """

    space: ChoiceSpace
    original: IntArray
    least: IntArray
    most: IntArray
    options: WidthOptions

    def steps(self, tie: int) -> IntArray:
        """List the numbers of channels removed in one step, from all channels down to the least width."""
        return np.diff(self.options[tie])[::-1]

    def allowed(self, tie: int) -> IntArray:
        """List the widths of a tie between its bounds, ascending."""
        options = self.options[tie]
        return np.asarray(options[options <= self.most[tie]], dtype=np.int64)

    def below(self, targets: IntArray) -> IntArray:
        """Find the largest width of each tie that is at most its target; the least one if none is."""
        return np.array(
            [
                max(options[options <= target], default=options[0])
                for options, target in zip(self.options, targets, strict=True)
            ],
            dtype=np.int64,
        )

    def plan(self, choice: IntArray, kept: Callable[[int, int], tuple[int, ...]]) -> PruningPlan:
        """Make the plan for a choice; groups inside an absent branch vanish with it.

        Args:
            choice: the widths, shape (ties,).
            kept: returns the channels that stay, for the index of a group and its width.
        """
        graph, depth, widths = self.space.graph, self.space.depth, self.space.expand(choice)
        alive, groups = depth.alive(widths), len(graph.groups)
        keep = {
            group.name: kept(number, int(widths[number]))
            for number, group in enumerate(graph.groups)
            if alive[number] and widths[number] < group.channels
        }
        absent = [unit for unit, width in zip(depth.units, widths[groups:], strict=True) if width == 0]
        without = tuple(name for unit in absent for name in unit)
        return PruningPlan(graph, keep, without) if without else PruningPlan(graph, keep)


def width_options(widths: Widths, graph: ChannelGraph, latency: LatencyModel | None) -> WidthOptions | None:
    """List the widths of each group that run well, where ``multiple_of="auto"`` requires them.

    Raises:
        UsageError: the device's times are needed and missing.
    """
    if widths.multiple_of != "auto":
        return None
    if latency is None:
        raise UsageError(
            "multiple_of='auto' needs the network's times on this device: give the table that "
            "secateur.latency.latency_table(model, graph, example_inputs) measures, as latency; or a number"
        )
    # A group that was removed with a branch has no channels, and stays so.
    widths_now = [max(1, group.channels) for group in graph.groups]
    return efficient_widths(latency, np.array(widths_now, dtype=np.int64))


def feasible_widths(
    graph: ChannelGraph,
    widths: Widths,
    options: WidthOptions | None = None,
    unscored: Unscored = Unscored(),
) -> FeasibleWidths:
    """Find the widths that the groups of a network may take, and the branches that may be removed.

    Args:
        graph: the graph of the network.
        widths: the constraints on widths.
        options: the widths of each group, in place of ``widths.multiple_of``.
        unscored: groups and branches that stay whole.

    Raises:
        UsageError: a name is unknown, no width lies between the floor and the cap of a group, or only
            branches may be removed and there are none.
    """
    original = np.array([group.channels for group in graph.groups], dtype=np.int64)
    open_ = [group.prunable and group.name not in unscored.groups for group in graph.groups]
    fixed = ~np.array(open_, dtype=np.bool_) | _named(graph, widths.ignore, "ignore")
    if widths.only:
        fixed |= ~_named(graph, widths.only, "only")
    if widths.depth == "only":
        fixed[:] = True
    needed = np.array([group.min_channels for group in graph.groups], dtype=np.int64)
    floors = np.maximum(bounds(graph, widths.floors, "floors", lower=True), widths.min_channels)
    floors = np.maximum(floors, needed)
    caps = np.minimum(bounds(graph, widths.caps, "caps"), original)

    def options_of(group: int) -> IntArray:
        whole, floor = original[group], floors[group]
        if fixed[group]:
            return np.array([whole], dtype=np.int64)
        if options is not None:
            below = options[group][(options[group] >= floor) & (options[group] < whole)]
        else:
            step = int(widths.multiple_of)
            below = np.arange(-(-floor // step) * step, whole, step, dtype=np.int64)
        return np.append(below, whole)

    found = [options_of(group) for group in range(len(original))]
    most = np.array(
        [
            one[-1] if fix else max(one[one <= cap], default=0)
            for one, cap, fix in zip(found, caps, fixed, strict=True)
        ],
        dtype=np.int64,
    )
    if widths.uniform_widths:
        found, most = common_widths(graph, found, most)
    least = np.array([one[0] for one in found], dtype=np.int64)
    for group in np.flatnonzero(most < least)[:1]:
        kind = "one that runs well" if options is not None else f"a multiple of {widths.multiple_of}"
        raise UsageError(
            f"group '{graph.groups[group].name}': from its floor {floors[group]} to its cap {caps[group]} "
            f"no width is {kind} or all its {original[group]} channels"
        )
    depth = find_depth(graph, widths, unscored.branches)
    space = ChoiceSpace.of(graph, depth, uniform_widths=widths.uniform_widths)
    first = np.unique(space.ties, return_index=True)[1][: space.size - len(depth.units)]
    ones = np.ones(len(depth.units), dtype=np.int64)
    return FeasibleWidths(
        space,
        np.append(original[first], ones),
        np.append(least[first], 0 * ones),
        np.append(most[first], ones),
        (*(found[group] for group in first), *[np.array([0, 1], dtype=np.int64)] * len(ones)),
    )


def feasible_within(
    graph: ChannelGraph,
    amounts: Mapping[str, int],
    widths: Widths,
    latency: LatencyModel | None = None,
    unscored: Unscored = Unscored(),
) -> tuple[FeasibleWidths, CostEvaluator]:
    """Find the widths that the groups of a network may take, and check that limits can be met with them.

    Args:
        graph: the graph of the network.
        amounts: the largest amount that may remain, by quantity.
        widths: the constraints on widths.
        latency: predicts milliseconds.
        unscored: groups and branches that stay whole.

    Returns:
        The widths, and what counts their costs.

    Raises:
        BudgetError: the limits cannot be met; the message says what the least is, and what limits it.
        UsageError: as for :func:`feasible_widths`, or the device's times are needed and missing.
    """
    options = width_options(widths, graph, latency)
    feasible = feasible_widths(graph, widths, options, unscored)
    evaluator = CostEvaluator(feasible.space, amounts, latency)
    if not evaluator.within(feasible.least):
        raise BudgetError(explain_infeasible(evaluator, widths, options, unscored))
    return feasible, evaluator


def bounds(graph: ChannelGraph, given: Bounds, what: str, *, lower: bool = False) -> IntArray:
    """Resolve the bound of each group in channels, shape (groups,); where several apply, the strictest.

    Args:
        graph: the graph of the network.
        given: one bound for all groups, or bounds by group name or pattern.
        what: the name of the argument, for messages.
        lower: whether these are lower bounds: shares are then rounded up, and 1 is not a bound.
            Otherwise shares are rounded down to at least 1, and all channels are not a bound.

    Raises:
        UsageError: a name is unknown.
    """
    named: Mapping[str, int | float]
    named = {} if given is None else given if isinstance(given, Mapping) else {"*": given}
    strictest = max if lower else min
    branches = branch_names(graph) if lower else []
    result = [1 if lower else group.channels for group in graph.groups]
    for pattern, limit in named.items():
        matches = [n for n, group in enumerate(graph.groups) if fits(group.name, pattern)]
        if not matches and graph.groups and not (lower and any(fits(one, pattern) for one in branches)):
            known = [*(group.name for group in graph.groups), *branches]
            raise UsageError(f"{what}: no group '{pattern}'{closest(pattern, known)}")
        for number in matches:
            amount = amount_of(limit, graph.groups[number].channels, up=lower)
            result[number] = strictest(result[number], max(1, amount))
    return np.array(result, dtype=np.int64)


def explain_infeasible(
    evaluator: CostEvaluator,
    widths: Widths,
    options: WidthOptions | None = None,
    unscored: Unscored = Unscored(),
) -> str:
    """Explain in one line why a budget cannot be met: the least that is possible, and what limits it.

    Args:
        evaluator: the network and the limits, of which at least one cannot be met.
        widths: as for :func:`feasible_widths`, like all that follow.
        options: the widths of each group.
        unscored: groups and branches that stay whole.
    """
    feasible = feasible_widths(evaluator.graph, widths, options, unscored)
    now = evaluator.original
    least = evaluator.least_of(feasible.original, feasible.least)
    unmet = [name for name, allowed in evaluator.limits.items() if least[name] > allowed]

    def share(name: str, number: int) -> str:
        amount = amount_words(name, number) if name == "latency" else f"{number:,}"
        return f"{amount} ({number / max(1, now[name]):.2%})"

    parts = [
        f"{QUANTITIES[name].unit}: at most {share(name, allowed)} may remain, "
        f"{'but' if name in unmet else 'and'} the least possible is {share(name, least[name])}"
        for name, allowed in evaluator.limits.items()
    ]

    def gain(widths: Widths, options: WidthOptions | None, unscored: Unscored) -> str:
        """Format the least amounts under other constraints, where they are smaller."""
        other = feasible_widths(evaluator.graph, widths, options, unscored)
        found = replace(evaluator, space=other.space).named(other.least)
        return ", ".join(amount_words(name, found[name]) for name in unmet if found[name] < least[name])

    asked = widths.changed(caps=None)
    without: dict[str, tuple[Widths, WidthOptions | None, Unscored]] = {
        "multiple_of": (asked.changed(multiple_of=1), None, unscored),
        "min_channels": (asked.changed(min_channels=1), options, unscored),
        "floors": (asked.changed(floors=None), options, unscored),
        "ignore": (asked.changed(ignore=()), options, unscored),
        "only": (asked.changed(only=()), options, unscored),
        "groups without scores": (asked, options, Unscored()),
        "uniform_depth": (asked.changed(uniform_depth=False), options, unscored),
        "uniform_widths": (asked.changed(uniform_widths=False), options, unscored),
    }
    gains = {name: gain(*other) for name, other in without.items()}
    alone = [f"{name} (without: {found})" for name, found in gains.items() if found]
    free = gain(Widths(), None, Unscored())
    if alone:
        cause = f"It is limited by {' and '.join(alone)}"
    elif free:
        strict = [name for name, other in without.items() if other != (asked, options, unscored)]
        cause = f"It is limited by {' and '.join(strict)} together (without: {free})"
    else:
        cause = "The frozen groups and one channel of every prunable group already need that much"
    return f"no plan meets the budget. {'; '.join(parts)}. {cause}"


def _named(
    graph: ChannelGraph, patterns: Iterable[str], what: str
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Mark the groups selected by names of groups, or of modules that write or carry their channels."""
    named = np.zeros(len(graph.groups), dtype=np.bool_)
    everything = {path for tensor in graph.tensors for path in enclosing_paths(tensor)}
    for pattern in patterns:
        if pattern in graph:
            named[[group.name == pattern for group in graph.groups]] = True
            continue
        found = [
            fnmatchcase(group.name, pattern)
            or any(fnmatchcase(path, pattern) for path in _output_paths(group))
            for group in graph.groups
        ]
        if not any(found) and not any(fits(path, pattern) for path in everything):
            known = [*everything, *(group.name for group in graph.groups)]
            raise UsageError(f"{what}: no group or module '{pattern}'{closest(pattern, known)}")
        named |= np.array(found, dtype=np.bool_)
    return named


def _output_paths(group: Group) -> set[str]:
    """Collect the modules that write or carry a group's channels, and the modules that contain those."""
    return {
        path
        for member in group.members
        if member.role is not Role.CONSUMER
        for path in enclosing_paths(member.tensor)
    }
