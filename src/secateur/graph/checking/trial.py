"""Remove channels and residual branches on trial before they are offered, and freeze what does not pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
from torch import nn

from secateur.graph.branches import ResidualBranch
from secateur.graph.capture.program import ExampleInputs
from secateur.graph.channel_graph import ChannelGraph, Keep
from secateur.graph.checking.trial_comparison import Failure, TrialComparison, Way
from secateur.graph.checking.trial_widths import Share, kept_channels, least_widths
from secateur.graph.groups import Group
from secateur.graph.sizes.recording import Recorded

_Unit = TypeVar("_Unit", Group, ResidualBranch)

MOST_TRIALS = 40
"""How many trials are made to find out which groups fail; what is undecided then is frozen."""

_WAYS = {
    Share.HALF: Way(0, exact=True, training=True, lively=True),
    Share.FEWEST: Way(1),
    Share.ONE_REMOVED: Way(2, scaled=False),
}

_WITHOUT_BRANCHES = Way(1, training=True, scaled=False)


def _brief(way: Way) -> Way:
    """Return a way that compares the evaluation-mode pass alone."""
    return replace(way, training=False)


def passing(model: nn.Module, graph: ChannelGraph, inputs: ExampleInputs, recorded: Recorded) -> bool:
    """Return whether about half of all groups can be cut at once.

    Args:
        model: the network; not changed.
        graph: its channel graph.
        inputs: example inputs.
        recorded: what is known already of what the network runs in its modes.
    """
    groups = _open(graph, least_widths(graph))
    return not groups or _Trials(model, graph, inputs, recorded).run(groups, Share.HALF) is None


def examined(
    model: nn.Module, graph: ChannelGraph, inputs: ExampleInputs, recorded: Recorded
) -> ChannelGraph:
    """Remove channels and residual branches on trial, all at once, and freeze what fails.

    Of each group about half of the channels goes, then all but one, then a single one: code that does
    something else at some widths shows at the extremes. Where one channel alone fails and two pass, the
    group gets a least width of two. Then all branches go, together with about half of the channels of each
    group, and branches that are parts of others have their own trials.

    Args:
        model: the network; not changed.
        graph: its channel graph.
        inputs: example inputs.
        recorded: what is known already of what the network runs in its modes.

    Returns:
        The graph with failed groups and branches frozen, each with its reason.
    """
    trials = _Trials(model, graph, inputs, recorded)
    if not _open(graph, trials.least):
        trials.comparison.runs_as_it_is()
    frozen: dict[str, str] = {}
    settled = False
    while not settled:
        settled = True
        for share in Share:
            groups = [group for group in _open(graph, trials.least) if group.name not in frozen]
            while groups and (failure := trials.run(groups, share)) is not None:
                run = partial(trials.run, share=share, briefly=failure.early)
                failed = trials.culprits(groups, run, failure)
                if share is Share.FEWEST:
                    failed = {name: why for name, why in failed.items() if not trials.passes_with_two(name)}
                frozen |= failed
                # What was cut beside a frozen group is now cut without it, so all is tried once more.
                settled = settled and not failed
                groups = [group for group in groups if group.name not in frozen]
    groups = [group for group in _open(graph, trials.least) if group.name not in frozen]
    failed_branches: dict[str, str] = {}
    for branches in _levels(graph.branches):
        failed_branches |= _failed_branches(trials, branches, groups)
    advice = graph.wiring.advice
    explained = {name: f"{why}; {advice[name]}" if name in advice else why for name, why in frozen.items()}
    return _with(graph, explained, trials.least, failed_branches)


def _levels(branches: Sequence[ResidualBranch]) -> list[list[ResidualBranch]]:
    """Sort the branches that may be removed by how many others they are parts of."""
    around = {branch.name: branch.parent for branch in branches}

    def depth(name: str) -> int:
        parent = around[name]
        return 0 if parent is None else 1 + depth(parent)

    levels: dict[int, list[ResidualBranch]] = {}
    for branch in branches:
        if branch.prunable:
            levels.setdefault(depth(branch.name), []).append(branch)
    return [levels[level] for level in sorted(levels)]


def _failed_branches(
    trials: _Trials, branches: Sequence[ResidualBranch], groups: Sequence[Group]
) -> dict[str, str]:
    """Remove residual branches on trial, none of them a part of another.

    Args:
        trials: of the network.
        branches: the branches.
        groups: the groups of which channels may be removed.

    Returns:
        The reason for each branch that fails, by its name.
    """
    failed: dict[str, str] = {}

    def settle(cut: Sequence[Group]) -> None:
        left, run = branches, partial(trials.run_without, groups=cut)
        while left and (failure := run(left)) is not None:
            failed.update(trials.culprits(left, partial(run, briefly=failure.early), failure))
            left = [branch for branch in left if branch.name not in failed]

    if trials.run_without(branches, groups) is not None:
        settle(())
        branches = [branch for branch in branches if branch.name not in failed]
        settle(groups)
    return failed


def _open(graph: ChannelGraph, least: Mapping[str, int]) -> list[Group]:
    """List the groups that may lose channels, given the least width of those that need several."""
    return [group for group in graph.prunable if group.channels > least.get(group.name, 1)]


def _with(
    graph: ChannelGraph,
    frozen: Mapping[str, str],
    least: Mapping[str, int],
    failed_branches: Mapping[str, str],
) -> ChannelGraph:
    groups = tuple(
        replace(
            group,
            reason=frozen.get(group.name, group.reason),
            min_channels=least.get(group.name, group.min_channels),
        )
        for group in graph.wiring.groups
    )
    branches = tuple(
        replace(branch, reason=failed_branches.get(branch.name, branch.reason))
        for branch in graph.wiring.branches
    )
    return ChannelGraph.whole(replace(graph.wiring, groups=groups, branches=branches))


class _Trials:
    """Trials of one network, and the search for what fails in them.

    Attributes:
        least: groups that need more than one channel, with their least width.
    """

    def __init__(
        self, model: nn.Module, graph: ChannelGraph, inputs: ExampleInputs, recorded: Recorded
    ) -> None:
        self.least = least_widths(graph)
        self.comparison = TrialComparison(model, graph, inputs, recorded)
        self._graph = graph
        self._left = MOST_TRIALS

    def run(self, groups: Sequence[Group], share: Share, *, briefly: bool = False) -> Failure | None:
        """Cut some groups and compare the outputs with the masked original.

        Args:
            groups: those to cut.
            share: which channels to keep.
            briefly: compare the evaluation-mode pass alone.

        Returns:
            What is wrong with the cut, ``None`` if it is right.
        """
        way = _brief(_WAYS[share]) if briefly else _WAYS[share]
        failure = self._attempt(groups, share, way)
        if failure is not None and share is Share.FEWEST and (failure.unseen or failure.noisy):
            # Normalising one channel gives a constant, so two are tried. If two show nothing either, the
            # trial with half of the channels decides.
            failure = self._attempt(groups, share, way, spare=1)
            failure = None if failure is not None and (failure.unseen or failure.noisy) else failure
        elif failure is not None and failure.unseen:
            # What is left may be dead by chance (a ReLU that never opens): other channels are kept then.
            failure = self._attempt(groups, share, way, seed=1)
            if failure is not None and failure.unseen:
                failure = self._attempt(groups, share, way, seed=2)
        if failure is not None:
            self.comparison.runs_as_it_is()
        return failure

    def run_without(
        self, branches: Sequence[ResidualBranch], groups: Sequence[Group], *, briefly: bool = False
    ) -> Failure | None:
        """Remove some residual branches and compare the outputs with the masked original.

        Args:
            branches: those to remove.
            groups: those that lose about half of their channels.
            briefly: compare the evaluation-mode pass alone.

        Returns:
            What is wrong with the smaller network, ``None`` if it is right.
        """
        names = [branch.name for branch in branches]
        way = _brief(_WITHOUT_BRANCHES) if briefly else _WITHOUT_BRANCHES
        failure = self.comparison.failure_of(Keep(self._kept(groups, Share.HALF), names), way)
        if failure is not None:
            self.comparison.runs_as_it_is()
        return failure

    def culprits(
        self, units: Sequence[_Unit], run: Callable[[Sequence[_Unit]], Failure | None], failure: Failure
    ) -> dict[str, str]:
        """Find the groups or branches that fail.

        Args:
            units: some that fail together.
            run: makes the trial with some of them, as far as it has to go to show the failure.
            failure: why they fail.

        Returns:
            Reasons by the names of groups or branches; at least one.
        """
        reason = f"not verified: {failure.reason}"
        if len(units) == 1 and failure.differs and isinstance(units[0], Group):
            place = self.comparison.changed_factor(Keep(self._kept([units[0]], Share.HALF)))
            reason += f"; a factor in the code changes with the width ({place})" if place else ""
        if len(units) == 1 or failure.unseen:
            return {unit.name: reason for unit in units}
        if self._left <= 0:
            return {unit.name: f"{reason}; not tried alone" for unit in units}
        middle = len(units) // 2
        failed: dict[str, str] = {}
        for part in (units[:middle], units[middle:]):
            self._left -= 1
            found = run(part)
            if found is not None:
                failed |= self.culprits(part, run, found)
        # If each half passes alone, the halves fail together; the second half is frozen.
        return failed or {unit.name: reason for unit in units[middle:]}

    def passes_with_two(self, name: str) -> bool:
        """Return whether a group that fails with one channel passes with two, its least width then."""
        group = self._graph[name]
        if self.least.get(name, 1) > 1 or group.channels <= 2:
            return False
        self.least[name] = 2
        if self.run([group], Share.FEWEST) is None:
            return True
        del self.least[name]
        return False

    def _attempt(
        self, groups: Sequence[Group], share: Share, way: Way, *, seed: int = 0, spare: int = 0
    ) -> Failure | None:
        """Make one trial.

        Args:
            groups: those to cut.
            share: which channels to keep.
            way: how to compare.
            seed: for the choice of channels.
            spare: how many channels to keep beyond the least width.
        """
        plan = Keep(self._kept(groups, share, seed, spare))
        # Nearly whole, the network is what it was trained as; narrow, its signals may fade.
        return self.comparison.failure_of(plan, way, prepared=share is Share.FEWEST)

    def _kept(
        self, groups: Sequence[Group], share: Share, seed: int = 0, spare: int = 0
    ) -> dict[str, list[int]]:
        """Draw the channels that a trial keeps, by group."""
        generator = np.random.default_rng(seed)
        return {
            group.name: kept_channels(generator, group, share, self.least.get(group.name, 1), spare)
            for group in groups
        }
