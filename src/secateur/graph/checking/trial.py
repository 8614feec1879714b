"""Remove channels and residual branches on trial before they are offered, and freeze what does not pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from secateur._compat import FakeTensorMode, tree_map_only
from secateur.errors import SecateurError, TraceError
from secateur.graph.branches import Replacement, ResidualBranch
from secateur.graph.capture.program import ExampleInputs, call_arguments, doubled, mode_of
from secateur.graph.channel_graph import AttributeValue, ChannelGraph, Keep
from secateur.graph.checking.compare import TOLERANCE, Outputs, constant_parts
from secateur.graph.checking.draws import jittered, random_inputs
from secateur.graph.checking.execution import (
    ComparedPass,
    Judgement,
    described,
    judge,
    moved,
    run_network,
    uncompiled,
)
from secateur.graph.checking.probe import Weights, lively, scrambled
from secateur.graph.cutting.rescale import rescaled
from secateur.graph.cutting.substitute import substituted
from secateur.graph.cutting.tensors import by_tensor, cut_tensor, named_tensors, positions_left
from secateur.graph.groups import Group, IntArray
from secateur.graph.sizes.shape_passes import ShapeMode
from secateur.graph.wiring import Pass
from secateur.outputs import parts_of

_Unit = TypeVar("_Unit", Group, ResidualBranch)

MOST_TRIALS = 40
"""How many trials are made to find out which groups fail; what is undecided then is frozen."""

_COARSE = 1e-2
"""Relative difference at which a trial in float32 is made once more in float64."""

_FAR = 1e-2
"""Relative change of an output between inputs, above which an error in an early layer reaches it too."""

_BLUR = 1e-4
"""Difference in float32, relative to the usual size of an output, that may be rounding."""


class Share(Enum):
    """Which channels of each group a trial keeps."""

    HALF = "about half of them"
    FEWEST = "as few as the group may have"
    ONE_REMOVED = "all but one"


@dataclass(frozen=True)
class _Way:
    """How a trial compares.

    Attributes:
        draw: which inputs it uses: one of two random draws, or those of the user.
        exact: whether it compares in float64 at once, instead of in float32 first.
        training: whether it compares in training mode too.
        scaled: whether it runs on other inputs too, to see how far the outputs move.
    """

    draw: int
    exact: bool = False
    training: bool = False
    scaled: bool = True


_WAYS = {
    Share.HALF: _Way(0, exact=True, training=True),
    Share.FEWEST: _Way(1),
    Share.ONE_REMOVED: _Way(2, scaled=False),
}

_WITHOUT_BRANCHES = _Way(1, training=True, scaled=False)


@dataclass(frozen=True)
class _Fault:
    """What is wrong with a cut.

    Attributes:
        reason: in words.
        unseen: nothing could be compared, since the outputs do not depend on the inputs.
    """

    reason: str
    unseen: bool = False


_UNSEEN = _Fault("the outputs do not depend on the inputs, so nothing could be checked", unseen=True)


@dataclass(frozen=True)
class _TrialCut:
    """A cut on trial.

    Attributes:
        way: how it is compared.
        weights: those of the network before the cut.
        after: the graph after the cut.
        kept: for each tensor that is cut, the positions that stay in each dimension.
        tensors: parameters and buffers of the cut network, except lengths of normalised weights.
        attributes: integer attributes of the cut network.
        replacements: modules that are replaced in it.
        found: outputs for the inputs of the trial, if they are known already.
        other: outputs for other inputs, if they are known already.
    """

    way: _Way
    weights: Weights
    after: ChannelGraph
    kept: Mapping[str, Mapping[int, IntArray]]
    tensors: Mapping[str, Tensor]
    attributes: Sequence[AttributeValue]
    replacements: Sequence[Replacement]
    found: Outputs | None = None
    other: Outputs | None = None


def passing(model: nn.Module, graph: ChannelGraph, inputs: ExampleInputs) -> bool:
    """Tell whether about half of all groups can be cut at once.

    Args:
        model: the network; not changed.
        graph: its channel graph.
        inputs: example inputs.
    """
    groups = _open(graph)
    return not groups or _Trials(model, graph, inputs).run(groups, Share.HALF) is None


def examined(model: nn.Module, graph: ChannelGraph, inputs: ExampleInputs) -> ChannelGraph:
    """Remove channels and residual branches on trial, all at once, and freeze what fails.

    Of each group about half of the channels goes, then all but one, then a single one: code that does
    something else at some widths shows at the extremes. Where one channel alone fails and two pass, the
    group gets a least width of two. Then all branches go, together with about half of the channels of each
    group, and branches that are parts of others have their own trials.

    Args:
        model: the network; not changed.
        graph: its channel graph.
        inputs: example inputs.

    Returns:
        The graph with failed groups and branches frozen, each with its reason.
    """
    trials = _Trials(model, graph, inputs)
    if not _open(graph):
        trials.runs_as_it_is()
    frozen: dict[str, str] = {}
    settled = False
    while not settled:
        settled = True
        for share in Share:
            groups = [group for group in _open(graph) if group.name not in frozen]
            while groups and (problem := trials.run(groups, share)) is not None:
                failed = trials.culprits(groups, partial(trials.run, share=share), problem)
                if share is Share.FEWEST:
                    failed = {name: why for name, why in failed.items() if not trials.passes_with_two(name)}
                frozen |= failed
                # What was cut beside a frozen group is now cut without it, so all is tried once more.
                settled = settled and not failed
                groups = [group for group in groups if group.name not in frozen]
    groups = [group for group in _open(graph) if group.name not in frozen]
    failed_branches: dict[str, str] = {}
    for branches in _levels(graph.branches):
        failed_branches |= _failed_branches(trials, branches, groups)
    numbers = graph.wiring.numbers
    explained = {name: f"{why}; {numbers[name]}" if name in numbers else why for name, why in frozen.items()}
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
        while left and (problem := run(left)) is not None:
            failed.update(trials.culprits(left, run, problem))
            left = [branch for branch in left if branch.name not in failed]

    if trials.run_without(branches, groups) is not None:
        settle(())
        branches = [branch for branch in branches if branch.name not in failed]
        settle(groups)
    return failed


def _open(graph: ChannelGraph) -> list[Group]:
    least = _needed(graph)
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
    """One network with scrambled constants, to be cut again and again.

    Attributes:
        least: groups that need more than one channel, with their least width.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, inputs: ExampleInputs) -> None:
        self.least = _needed(graph)
        self._model = model
        self._graph = graph
        self._inputs = inputs
        self._scrambled = Weights(scrambled(named_tensors(model)))
        self._finite: bool | None = None  # known once the network itself has run
        program = graph.wiring.program
        self._draws = [*(random_inputs(program, inputs, seed) for seed in (1, 2)), inputs]
        self._mild = False  # whether the draws are close to the given inputs
        self._native = False  # until the network is found not to run in float64
        dtypes = {tensor.dtype for tensor in self._scrambled.tensors.values() if tensor.is_floating_point()}
        self._fine = dtypes <= {torch.float32, torch.float64}
        self._left = MOST_TRIALS

    def runs_as_it_is(self) -> bool:
        """Run the network on the example inputs as users run it.

        Returns:
            Whether all outputs are finite.

        Raises:
            TraceError: it does not run.
        """
        if self._finite is None:
            try:
                found = run_network(self._model, self._inputs, training=False, random=False, native=True)
            except Exception as error:
                raise TraceError(
                    f"the network does not run on the example inputs ({described(error)}); correct them"
                ) from error
            self._finite = _is_finite(found)
        return self._finite

    def run(self, groups: Sequence[Group], share: Share) -> _Fault | None:
        """Cut some groups and compare the outputs with the masked original.

        Returns:
            What is wrong with the cut, ``None`` if it is right.
        """
        problem = self._attempt(groups, share)
        if problem is not None and problem.unseen:
            if share is Share.FEWEST:
                # Normalising one channel gives a constant, so two are tried. If two show nothing either, the
                # trial with half of the channels decides.
                problem = self._attempt(groups, share, spare=1)
                problem = None if problem is not None and problem.unseen else problem
            else:
                # What is left may be dead by chance (a ReLU that never opens): other channels are kept then.
                problem = self._attempt(groups, share, seed=1)
                if problem is not None and problem.unseen:
                    problem = self._attempt(groups, share, seed=2)
        if problem is not None:
            self.runs_as_it_is()
        return problem

    def run_without(self, branches: Sequence[ResidualBranch], groups: Sequence[Group]) -> _Fault | None:
        """Remove some residual branches and compare the outputs with the masked original.

        Args:
            branches: those to remove.
            groups: those that lose about half of their channels.

        Returns:
            What is wrong with the smaller network, ``None`` if it is right.
        """
        names = [branch.name for branch in branches]
        generator = np.random.default_rng(0)
        keep = {group.name: self._kept(generator, group, Share.HALF, 0) for group in groups}
        problem = self._fault_of(self._cut(Keep(keep, names), _WITHOUT_BRANCHES, self._scrambled))
        if problem is not None:
            self.runs_as_it_is()
        return problem

    def culprits(
        self, units: Sequence[_Unit], run: Callable[[Sequence[_Unit]], _Fault | None], problem: _Fault
    ) -> dict[str, str]:
        """Find the groups or branches that fail.

        Args:
            units: some that fail together.
            run: makes the trial with some of them.
            problem: why they fail.

        Returns:
            Reasons by the names of groups or branches; at least one.
        """
        reason = f"not verified: {problem.reason}"
        if len(units) == 1 or problem.unseen:
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
        """Tell whether a group that fails with one channel passes with two, which is then its least width."""
        group = self._graph[name]
        if self.least.get(name, 1) > 1 or group.channels <= 2:
            return False
        self.least[name] = 2
        if self.run([group], Share.FEWEST) is None:
            return True
        del self.least[name]
        return False

    def _attempt(
        self, groups: Sequence[Group], share: Share, *, seed: int = 0, spare: int = 0
    ) -> _Fault | None:
        """Make one trial.

        Args:
            groups: those to cut.
            share: which channels to keep.
            seed: for the choice of channels.
            spare: how many channels to keep beyond the least width.
        """
        generator = np.random.default_rng(seed)
        plan = Keep({group.name: self._kept(generator, group, share, spare) for group in groups})
        # Nearly whole, the network is what it was trained as; narrow, its signals may fade.
        weights = self._prepared(plan) if share is Share.FEWEST else self._scrambled
        cut = self._cut(plan, _WAYS[share], weights)
        return self._fault_of(self._lively(cut, plan) if share is Share.HALF else cut)

    def _kept(self, generator: np.random.Generator, group: Group, share: Share, spare: int) -> list[int]:
        """Draw the channels of a group that a trial keeps."""
        if share is Share.HALF:
            # Of each group another share: with one for all, sizes that fit by accident would pass.
            return about_half(generator, group.channels, self.least.get(group.name, 1))
        if share is Share.ONE_REMOVED:
            gone = int(generator.integers(group.channels))
            return [channel for channel in range(group.channels) if channel != gone]
        count = min(self.least.get(group.name, 1) + spare, group.channels)
        return sorted(generator.permutation(group.channels)[:count].tolist())

    def _prepared(self, plan: Keep) -> Weights:
        """Prepare weights with which the inputs affect the outputs of the masked original."""
        forward, removed = self._graph.wiring.evaluation, self._graph.after(plan).removed
        for _ in range(2):
            try:
                return lively(forward, self._scrambled.tensors, self._draws[1], removed)
            except Exception:  # noqa: BLE001 - operators may refuse values in any way
                self._draw_closer()
        return Weights(self._scrambled.tensors)

    def _cut(self, plan: Keep, way: _Way, weights: Weights) -> _TrialCut:
        """Cut all tensors; uncut ones are copied, since the network may write to them."""
        after = self._graph.after(plan)
        kept = by_tensor(positions_left(self._graph, after))
        tensors = {
            name: cut_tensor(tensor, kept[name]) if name in kept else tensor.clone()
            for name, tensor in weights.tensors.items()
            if name in after.tensors
        }
        attributes = self._graph.attributes_after(plan)
        return _TrialCut(way, weights, after, kept, tensors, attributes, after.replacements)

    def _lively(self, cut: _TrialCut, plan: Keep) -> _TrialCut:
        """Cut prepared weights instead, if the outputs hardly change with the inputs."""
        evaluation = self._graph.wiring.evaluation
        try:
            found = self._run_cut(cut, evaluation, self._draws[cut.way.draw], self._native)
            other = self._quick_run(cut, self._draws[1 - cut.way.draw])
        except Exception:  # noqa: BLE001 - the comparison runs it once more, and reports it
            return cut
        if _far(found, other):
            return replace(cut, found=found, other=other)
        prepared = self._prepared(plan)
        return replace(self._cut(plan, cut.way, prepared), other=prepared.outputs)

    def _fault_of(self, cut: _TrialCut) -> _Fault | None:
        """Compare in float32 first, unless float64 is required; confirm a difference in float64."""
        if not cut.way.exact and self._fine and not self._native:
            problem = self._compared(cut, native=True)
            if problem is None or problem.unseen:
                return problem
        problem = self._compared(cut, native=self._native)
        if problem is None or problem.unseen or self._native or not self._needs_native():
            return problem
        self._native = True
        return self._compared(replace(cut, found=None), native=True)

    def _compared(self, cut: _TrialCut, *, native: bool) -> _Fault | None:
        """Compare the passes of a cut network with those of the masked original."""
        wiring = self._graph.wiring
        try:
            problem = self._compared_pass(cut, wiring.evaluation, cut.way.draw, native)
            if problem is not None or not cut.way.training:
                return problem
            if not wiring.training.program.derived:
                problem = self._compared_pass(cut, wiring.training, 1, native)
                if problem is not None:
                    return replace(problem, reason=f"in training mode, {problem.reason}")
        except SecateurError as error:
            return _Fault(str(error))
        return self._training_fails(cut, native)

    def _compared_pass(self, cut: _TrialCut, forward: Pass, draw: int, native: bool) -> _Fault | None:
        """Compare one pass of a cut network with that of the masked original.

        Args:
            cut: the cut.
            forward: the pass.
            draw: number of the inputs to run it with.
            native: in the dtype of the weights instead of float64.
        """
        training = forward.program.training
        inputs = doubled(self._draws[draw]) if training else self._draws[draw]
        coarse = native and not self._native
        compared = ComparedPass(forward, cut.after, native)

        def noise(rounded: bool) -> Outputs:
            return compared.run_masked(*moved(cut.weights.tensors, inputs, coarse=rounded, native=native))

        try:
            found = (not training and cut.found) or self._run_cut(cut, forward, inputs, native)
            others = self._others(cut, forward, found, draw)
        except SecateurError:
            raise
        except Exception as error:  # noqa: BLE001 - the user's code may fail in any way
            if self._refuses_draws():
                self._draw_closer()
                weights = replace(cut.weights, outputs=None)
                return self._compared_pass(
                    replace(cut, weights=weights, found=None, other=None), forward, draw, native
                )
            return _Fault(f"the forward pass fails ({described(error)})")
        known = cut.weights.outputs if coarse and draw == 1 and not training else None
        try:
            expected = known or compared.run_masked(cut.weights.tensors, inputs)
        except Exception as error:  # noqa: BLE001 - operators may refuse values in any way
            return _Fault(f"the masked original does not run ({described(error)})")
        if not _is_finite(expected) and self.runs_as_it_is():
            return _Fault("the outputs are infinite or NaN")
        tolerance, blur = (_COARSE, _BLUR) if coarse else (TOLERANCE, 0.0)
        problem = _difference(judge(expected, found, noise, tolerance, others, blur))
        if problem is None and others and not training and _all_constant([expected, *others]):
            return _UNSEEN
        return problem

    def _refuses_draws(self) -> bool:
        """Tell whether the network itself fails on inputs that were drawn at random."""
        random = self._graph.wiring.evaluation.program.is_random
        try:
            for inputs in [] if self._mild else self._draws[:2]:
                run_network(self._model, inputs, training=False, random=random, native=True)
        except Exception:  # noqa: BLE001 - the user's code may fail in any way
            return True
        return False

    def _draw_closer(self) -> None:
        """Draw inputs that are closer to the given ones."""
        self._draws[:2] = [jittered(self._inputs, seed) for seed in (1, 2)]
        self._mild = True

    def _run_cut(self, cut: _TrialCut, forward: Pass, inputs: ExampleInputs, native: bool) -> Outputs:
        """Run the cut network."""
        with substituted(self._model, self._tensors(cut, native), cut.attributes, cut.replacements):
            return ComparedPass(forward, cut.after, native).run_cut(self._model, inputs, guarded=False)

    def _quick_run(self, cut: _TrialCut, inputs: ExampleInputs) -> Outputs:
        """Run the cut network to see how far its outputs move: coarsely, unless a weight is normalised."""
        wiring = self._graph.wiring
        return self._run_cut(cut, wiring.evaluation, inputs, self._native or not wiring.rescales)

    def _tensors(self, cut: _TrialCut, native: bool) -> Mapping[str, Tensor]:
        """Collect parameters and buffers of a cut network; normalised weights in float64, not rounded."""
        rescales = self._graph.wiring.rescales
        names = {name for item in rescales for name in (item.length, item.direction)}
        sources = cut.weights.tensors
        if not native:
            sources = {name: sources[name].double() for name in names}
        return {**cut.tensors, **rescaled(rescales, sources, cut.kept)}

    def _others(self, cut: _TrialCut, forward: Pass, found: Outputs, draw: int) -> list[Outputs]:
        """Compute outputs for other inputs, which show how far the outputs of the network move."""
        if forward.program.training:
            return [self._run_cut(cut, forward, doubled(self._draws[1 - draw]), self._native)]
        if not cut.way.scaled:
            return []
        inputs = self._draws[1 - draw]
        other = cut.other or self._quick_run(cut, inputs)
        if other.paths != found.paths:
            return []
        if cut.weights is not self._scrambled and not _far(found, other):
            other = self._run_cut(cut, forward, inputs, self._native)
        return [other]

    def _needs_native(self) -> bool:
        """Tell whether the network runs in the dtype of its weights only."""
        random = self._graph.wiring.evaluation.program.is_random
        tensors = {name: item.clone() for name, item in self._scrambled.tensors.items()}
        try:
            with substituted(self._model, tensors):
                run_network(self._model, self._draws[0], training=False, random=random, guarded=False)
        except Exception:  # noqa: BLE001 - the user's code may fail in any way
            return True
        return False

    def _training_fails(self, cut: _TrialCut, native: bool) -> _Fault | None:
        """Tell whether the training-mode forward pass of the cut network fails, where the whole one runs."""
        changed = partial(substituted, attributes=cut.attributes, replacements=cut.replacements)
        error = _training_error(self._model, self._inputs, self._tensors(cut, native), changed)
        if error is None or _training_error(self._model, self._inputs, cut.weights.tensors) is not None:
            return None
        return _Fault(f"the training-mode forward pass fails ({error})")


def _needed(graph: ChannelGraph) -> dict[str, int]:
    """Find groups of which several channels must stay.

    An unbiased variance of one value is none, and what is picked by value must be there.
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


def _difference(judgement: Judgement) -> _Fault | None:
    """Say what a comparison found, ``None`` if the outputs are equal."""
    if judgement.problem is not None:
        return _Fault(f"the outputs differ from the masked original: {judgement.problem}")
    if judgement.noisy:
        return _Fault(f"rounding noise leaves nothing to compare in {', '.join(judgement.noisy)}")
    if not judgement.ok:
        return _Fault(
            f"the outputs differ from the masked original (by {judgement.error:.1e} of their size, "
            f"{judgement.place})"
        )
    return None


def _all_constant(draws: Sequence[Outputs]) -> bool:
    """Tell whether no output tensor depends on the inputs."""
    tensors = [leaf for leaf in draws[0].leaves if isinstance(leaf, Tensor) and leaf.numel()]
    return len(constant_parts(draws)) == len(tensors)


def _is_finite(outputs: Outputs) -> bool:
    """Tell whether all output values are finite."""
    return all(
        bool(torch.isfinite(leaf).all())
        for leaf in outputs.leaves
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    )


def _far(one: Outputs, other: Outputs) -> bool:
    """Return whether any output clearly differs between two runs."""
    if one.paths != other.paths:
        return True
    for left, right in zip(one.leaves, other.leaves, strict=True):
        if (
            isinstance(left, Tensor)
            and isinstance(right, Tensor)
            and left.shape == right.shape
            and left.numel()
        ):
            gap = (left.double() - right.double()).abs().nan_to_num(0.0, 0.0, 0.0).max()
            if gap > _FAR * left.double().abs().nan_to_num(0.0, 0.0, 0.0).max():
                return True
    return False


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


_Exchange = Callable[[nn.Module, Mapping[str, Tensor]], contextlib.AbstractContextManager[None]]
"""Gives a network other tensors within a block."""


def _training_error(
    model: nn.Module,
    inputs: ExampleInputs,
    tensors: Mapping[str, Tensor],
    exchange: _Exchange = substituted,
) -> str | None:
    """Run the training-mode forward pass on shapes alone and report what goes wrong."""
    error = _run_on_shapes(
        model, inputs, tensors, exchange, lambda tensor: tensor.to("meta"), contextlib.nullcontext()
    )
    if error is None:
        return None
    # Code that makes tensors on a certain device fails on the meta device; fake tensors follow it.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    return _run_on_shapes(model, inputs, tensors, exchange, mode.from_tensor, mode)


def _run_on_shapes(
    model: nn.Module,
    inputs: ExampleInputs,
    tensors: Mapping[str, Tensor],
    exchange: _Exchange,
    to_shape: Callable[[Tensor], Tensor],
    mode: contextlib.AbstractContextManager[Any],
) -> str | None:
    shapes = {name: to_shape(tensor.detach()) for name, tensor in tensors.items()}
    args, kwargs = tree_map_only(Tensor, to_shape, call_arguments(doubled(inputs)))
    try:
        with (
            exchange(model, shapes),
            uncompiled(),
            mode,
            ShapeMode(),
            torch.enable_grad(),
            mode_of(model, training=True),
        ):
            # What only the backward pass reads shows there alone.
            for parameter in model.parameters():
                parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
            leaves = parts_of(model(*args, **kwargs)).tensors
            torch.autograd.backward(
                [leaf for leaf in leaves if leaf.requires_grad],
                [torch.ones_like(leaf) for leaf in leaves if leaf.requires_grad],
            )
    except Exception as error:  # noqa: BLE001 - the user's code may fail in any way
        return described(error)
    return None
