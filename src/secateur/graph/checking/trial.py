"""Cut every group on trial before it is offered, and freeze what does not pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur._compat import FakeTensorMode, tree_map_only
from secateur.errors import SecateurError, TraceError
from secateur.graph.capture.program import ExampleInputs, call_arguments, doubled, mode_of
from secateur.graph.channel_graph import ChannelGraph, Keep
from secateur.graph.checking.compare import TOLERANCE, Outputs, constant_parts
from secateur.graph.checking.draws import jittered, random_inputs
from secateur.graph.checking.execution import (
    Judgement,
    first_line,
    judge,
    moved,
    run_network,
    run_reference,
    uncompiled,
    written_buffers,
)
from secateur.graph.checking.masked import Removed
from secateur.graph.checking.probe import Weights, lively, scrambled
from secateur.graph.cutting.rescale import rescaled
from secateur.graph.cutting.substitute import substituted
from secateur.graph.cutting.tensors import by_tensor, cut_tensor, named_tensors, positions_left
from secateur.graph.groups import Group
from secateur.graph.sizes.shape_passes import ShapeNorm
from secateur.graph.wiring import Pass
from secateur.outputs import parts_of

MOST_TRIALS = 40
"""How many trials are made to find out which groups fail; what is undecided then is frozen."""

_COARSE = 1e-2
"""Relative difference at which a trial in float32 is made once more in float64."""

_FAR = 1e-2
"""Relative change of an output between inputs, above which an error in an early layer reaches it too."""

_BLUR = 1e-4
"""Difference in float32, relative to the usual size of an output, that may be rounding."""

Share = Callable[[np.random.Generator, Group], list[int]]
"""Which channels of a group a trial keeps."""


def passing(model: nn.Module, graph: ChannelGraph, inputs: ExampleInputs) -> bool:
    """Tell whether about half of all groups can be cut at once.

    Args:
        model: the network; not changed.
        graph: its channel graph.
        inputs: example inputs.
    """
    groups = _open(graph)
    return not groups or _Trials(model, graph, inputs).run(groups, half) is None


def examined(model: nn.Module, graph: ChannelGraph, inputs: ExampleInputs) -> ChannelGraph:
    """Cut the groups on trial, all at once, and freeze those that fail.

    Of each group about half of the channels goes, then all but one, then a single one: code that does
    something else at some widths shows at the extremes. Where one channel alone fails and two pass, the
    group gets a least width of two.

    Args:
        model: the network; not changed.
        graph: its channel graph.
        inputs: example inputs.

    Returns:
        The graph with failed groups frozen, each with its reason.
    """
    trials = _Trials(model, graph, inputs)
    if not _open(graph):
        trials.runs_as_it_is()
    frozen: dict[str, str] = {}
    settled = False
    while not settled:
        settled = True
        for share in (half, trials.fewest, one_removed):
            groups = [group for group in _open(graph) if group.name not in frozen]
            while groups and (reason := trials.run(groups, share)) is not None:
                failed = trials.culprits(groups, share, reason)
                if share == trials.fewest:
                    failed = {name: why for name, why in failed.items() if not trials.passes_with_two(name)}
                frozen |= failed
                # What was cut beside a frozen group is now cut without it, so all is tried once more.
                settled = settled and not failed
                groups = [group for group in groups if group.name not in frozen]
    return _with(graph, frozen, trials.least)


def _open(graph: ChannelGraph) -> list[Group]:
    return [group for group in graph.prunable if group.channels > 1]


def _with(graph: ChannelGraph, frozen: Mapping[str, str], least: Mapping[str, int]) -> ChannelGraph:
    groups = tuple(
        replace(
            group,
            reason=frozen.get(group.name, group.reason),
            min_channels=least.get(group.name, group.min_channels),
        )
        for group in graph.wiring.groups
    )
    return ChannelGraph.whole(replace(graph.wiring, groups=groups))


class _Trials:
    """One network with scrambled constants, to be cut again and again."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, inputs: ExampleInputs) -> None:
        self._model = model
        self._graph = graph
        self._inputs = inputs
        self._weights = self._scrambled = Weights(scrambled(named_tensors(model)))
        self._finite: bool | None = None  # known once the network itself has run
        program = graph.wiring.program
        self._draws = [*(random_inputs(program, inputs, seed) for seed in (1, 2)), inputs]
        self._mild = False  # whether the draws are close to the given inputs
        self._native = False
        dtypes = {tensor.dtype for tensor in self._scrambled.tensors.values() if tensor.is_floating_point()}
        self._fine = dtypes <= {torch.float32, torch.float64}
        self._left = MOST_TRIALS
        self._modes_differ = not graph.wiring.training.program.derived
        self.least = _needed(graph)
        self._spare = 0
        self._faint = False

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
                    f"the network does not run on the example inputs ({first_line(error)}); correct them"
                ) from error
            self._finite = _is_finite(found)
        return self._finite

    def fewest(self, generator: np.random.Generator, group: Group) -> list[int]:
        """Keep as few channels as the group may have."""
        count = min(self.least.get(group.name, 1) + self._spare, group.channels)
        return sorted(generator.permutation(group.channels)[:count].tolist())

    def _prepared(self, removed: Removed) -> Weights:
        """Weights with which what the inputs say reaches the outputs of the masked original."""
        forward = self._graph.wiring.evaluation
        for _ in range(2):
            try:
                return lively(forward, self._scrambled.tensors, self._draws[1], removed)
            except Exception:  # noqa: BLE001 - operators may refuse values in any way
                self._draws[:2] = [jittered(self._inputs, seed) for seed in (1, 2)]
                self._mild = True
        return Weights(self._scrambled.tensors)

    def run(self, groups: Sequence[Group], share: Share) -> str | None:
        """Cut some groups and compare the outputs with the masked original.

        Returns:
            Why the cut is wrong, ``None`` if it is right.
        """
        problem = self._attempt(groups, share, 0)
        for seed in range(1, 3):
            if problem != _UNSEEN:
                break
            if share == self.fewest:
                # A normalisation over a single channel leaves nothing of it; two tell something.
                self._spare = 1
                problem = self._attempt(groups, share, 0)
                self._spare = 0
                break
            # What is left may be dead by chance (a ReLU that never opens): other channels are kept then.
            problem = self._attempt(groups, share, seed)
        if problem is not None:
            self.runs_as_it_is()
        # So few channels may tell nothing even so; then half of them have.
        return None if problem == _UNSEEN and share == self.fewest else problem

    def _attempt(self, groups: Sequence[Group], share: Share, seed: int) -> str | None:
        generator = np.random.default_rng(seed)
        plan = Keep({group.name: share(generator, group) for group in groups})
        after = self._graph.after(plan)
        # Nearly whole, the network is what it was trained as; narrow, its signals may fade.
        self._weights = self._prepared(after.removed) if share == self.fewest else self._scrambled
        self._faint = False
        problem = self._cut(plan, after, share)
        if share == half and self._faint:
            self._weights = self._prepared(after.removed)
            problem = self._cut(plan, after, share)
        return problem

    def _cut(self, plan: Keep, after: ChannelGraph, share: Share) -> str | None:
        """Cut, and compare in float64; at the extremes in float32 first, which shows other code as well."""
        if share != half and self._fine and not self._native:
            reason = self._cut_in(plan, after, share, native=True)
            if reason is None or reason == _UNSEEN:
                return reason
        reason = self._cut_in(plan, after, share, native=self._native)
        if reason not in (None, _UNSEEN) and not self._native and self._needs_native():
            self._native = True
            reason = self._cut_in(plan, after, share, native=True)
        return reason

    def _cut_in(self, plan: Keep, after: ChannelGraph, share: Share, *, native: bool) -> str | None:
        kept = by_tensor(positions_left(self._graph, after))
        tensors = {
            name: cut_tensor(tensor, kept[name]) if name in kept else tensor.clone()
            for name, tensor in self._weights.tensors.items()
        }
        sources = self._weights.tensors if native else _doubles(self._graph, self._weights.tensors)
        tensors |= rescaled(self._graph.wiring.rescales, sources, kept)
        attributes = self._graph.attributes_after(plan)
        number = 0 if share == half else 2 if share == one_removed else 1
        cut = partial(substituted, self._model, tensors, attributes)
        wiring = self._graph.wiring
        try:
            reason = self._compared(cut, wiring.evaluation, after, number, native)
            if reason is not None or share != half:
                return reason
            if self._modes_differ:
                reason = self._compared(cut, wiring.training, after, 1, native)
                if reason is not None:
                    return f"in training mode, {reason}"
        except SecateurError as error:
            return str(error)
        return self._training_fails(tensors, attributes)

    def _compared(
        self,
        cut: Callable[[], contextlib.AbstractContextManager[None]],
        forward: Pass,
        after: ChannelGraph,
        number: int,
        native: bool,
    ) -> str | None:
        training, random = forward.program.training, forward.program.is_random
        inputs = doubled(self._draws[number]) if training else self._draws[number]

        def run_cut(inputs: ExampleInputs, native: bool) -> Outputs:
            with cut():
                return run_network(
                    self._model,
                    inputs,
                    training=training,
                    random=random,
                    native=native,
                    guarded=False,
                    watched=written_buffers(forward) if training else (),
                )

        others: list[Outputs] = []
        run = partial(run_reference, native=native, watched=after if training else None)
        try:
            found = run_cut(inputs, native)
            if training:
                others = [run_cut(doubled(self._draws[1 - number]), native)]
            elif number < 2:
                others = self._others(run_cut, found, number)
        except SecateurError:
            raise
        except Exception as error:  # noqa: BLE001 - the user's code may fail in any way
            if self._draws_milder():
                return self._compared(cut, forward, after, number, native)
            return f"the forward pass fails ({first_line(error)})"
        if self._faint and self._weights is self._scrambled:
            return _UNSEEN  # the weights are prepared then
        coarse = native and not self._native
        known = self._weights.outputs if coarse and number == 1 and not training else None
        try:
            expected = known or run(forward, after.removed, self._weights.tensors, inputs)
        except Exception as error:  # noqa: BLE001 - operators may refuse values in any way
            return f"the masked original does not run ({first_line(error)})"

        def noise(rounded: bool) -> Outputs:
            changed = moved(self._weights.tensors, inputs, coarse=rounded, native=native)
            return run(forward, after.removed, *changed)

        if not _is_finite(expected) and self.runs_as_it_is():
            return "the outputs are infinite or NaN"
        tolerance, blur = (_COARSE, _BLUR) if coarse else (TOLERANCE, 0.0)
        problem = _problem(judge(expected, found, noise, tolerance, others, blur))
        if problem is None and others and not training and _all_constant([expected, *others]):
            return _UNSEEN
        return problem

    def _others(
        self, run_cut: Callable[[ExampleInputs, bool], Outputs], found: Outputs, number: int
    ) -> list[Outputs]:
        """Run the cut network on other inputs, and note whether its outputs hardly depend on them."""
        other = self._draws[1 - number]
        # A coarse run tells how far outputs move, unless they hardly do. Normalised weights are in float64.
        again = run_cut(other, self._native or not self._graph.wiring.rescales)
        if again.paths != found.paths:
            return []
        self._faint = not _far(found, again)
        if self._faint and self._weights is not self._scrambled:
            again = run_cut(other, self._native)
        return [again]

    def _draws_milder(self) -> bool:
        """Draw inputs that are closer to the given ones, if the network itself refuses those drawn.

        Returns:
            Whether the inputs are others now.
        """
        if self._mild:
            return False
        self._mild = True
        random = self._graph.wiring.evaluation.program.is_random
        try:
            for inputs in self._draws[:2]:
                run_network(self._model, inputs, training=False, random=random, native=True)
        except Exception:  # noqa: BLE001 - the user's code may fail in any way
            self._draws[:2] = [jittered(self._inputs, seed) for seed in (1, 2)]
            return True
        return False

    def culprits(self, groups: Sequence[Group], share: Share, reason: str) -> dict[str, str]:
        """Find the groups that fail.

        Args:
            groups: some that fail together.
            share: of the trial.
            reason: why they fail.

        Returns:
            Reasons by the names of groups; at least one.
        """
        if len(groups) == 1 or reason == _UNSEEN:
            return {group.name: reason_of(reason) for group in groups}
        if self._left <= 0:
            return {group.name: f"{reason_of(reason)}; not tried alone" for group in groups}
        middle = len(groups) // 2
        failed: dict[str, str] = {}
        for part in (groups[:middle], groups[middle:]):
            self._left -= 1
            found = self.run(part, share)
            if found is not None:
                failed |= self.culprits(part, share, found)
        # Where each half passes alone, the two fail together, and the later half is given up.
        return failed or {group.name: reason_of(reason) for group in groups[middle:]}

    def passes_with_two(self, name: str) -> bool:
        """Tell whether a group that fails with one channel passes with two, which is then its least width."""
        group = self._graph[name]
        if self.least.get(name, 1) > 1 or group.channels <= 2:
            return False
        self.least[name] = 2
        if self.run([group], self.fewest) is None:
            return True
        del self.least[name]
        return False

    def _needs_native(self) -> bool:
        """Tell whether the network runs in the dtype of its weights only."""
        forward = self._graph.wiring.evaluation
        random = forward.program.is_random
        try:
            with substituted(
                self._model, {name: item.clone() for name, item in self._weights.tensors.items()}
            ):
                run_network(self._model, self._draws[0], training=False, random=random, guarded=False)
        except Exception:  # noqa: BLE001 - the user's code may fail in any way
            return True
        return False

    def _training_fails(self, tensors: Mapping[str, Tensor], attributes: Sequence[Any]) -> str | None:
        """Why the training-mode forward pass of the cut network fails, ``None`` if it runs."""
        error = _training_error(self._model, self._inputs, tensors, attributes)
        if error is None or _training_error(self._model, self._inputs, self._weights.tensors, ()) is not None:
            return None
        return f"the training-mode forward pass fails ({error})"


def _needed(graph: ChannelGraph) -> dict[str, int]:
    """Groups over which an unbiased variance is taken: of one value there is none."""
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
    return names


def _problem(judgement: Judgement) -> str | None:
    """Say what a comparison found, ``None`` if the outputs are equal."""
    if judgement.problem is not None:
        return f"the outputs differ from the masked original: {judgement.problem}"
    if judgement.noisy:
        return f"rounding noise leaves nothing to compare in {', '.join(judgement.noisy)}"
    if not judgement.ok:
        return (
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


_UNSEEN = "the outputs do not depend on the inputs, so nothing could be checked"


def reason_of(problem: str) -> str:
    """The reason that a user reads."""
    return f"not verified: {problem}"


def _doubles(graph: ChannelGraph, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Normalised weights in float64, so that the trial sees no rounding."""
    names = {name for item in graph.wiring.rescales for name in (item.length, item.direction)}
    return {name: tensors[name].double() for name in names}


def _far(one: Outputs, other: Outputs) -> bool:
    """Tell whether some output is clearly another one."""
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


def half(generator: np.random.Generator, group: Group) -> list[int]:
    """Keep about half of the channels; of each group another share.

    With one share for all, sizes that only fit together by accident would pass.
    """
    return about_half(generator, group.channels)


def about_half(generator: np.random.Generator, channels: int) -> list[int]:
    """Draw about half of a number of channels, at least one, never all.

    What is kept never maps onto itself where channels change places in pairs (neighbours, halves, ends):
    such a coupling could be overlooked. An odd number of them cannot; where one channel is its own partner,
    it is the middle one.
    """
    count = min(max(1, round(channels * generator.uniform(0.3, 0.7))), channels - 1)
    if channels % 2 == 0:
        count |= 1
    while True:
        kept = np.sort(generator.permutation(channels)[:count])
        if not np.array_equal(channels - 1 - kept[::-1], kept):
            some: list[int] = kept.tolist()
            return some


def one_removed(generator: np.random.Generator, group: Group) -> list[int]:
    """Keep all channels but one."""
    gone = int(generator.integers(group.channels))
    return [channel for channel in range(group.channels) if channel != gone]


def _training_error(
    model: nn.Module, inputs: ExampleInputs, tensors: Mapping[str, Tensor], attributes: Sequence[Any]
) -> str | None:
    """Run the training-mode forward pass on shapes alone and report what goes wrong."""
    error = _run_on_shapes(
        model, inputs, tensors, attributes, lambda tensor: tensor.to("meta"), contextlib.nullcontext()
    )
    if error is None:
        return None
    # Code that makes tensors on a device of its own fails on the meta device; fake tensors follow it.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    return _run_on_shapes(model, inputs, tensors, attributes, mode.from_tensor, mode)


def _run_on_shapes(
    model: nn.Module,
    inputs: ExampleInputs,
    tensors: Mapping[str, Tensor],
    attributes: Sequence[Any],
    to_shape: Callable[[Tensor], Tensor],
    mode: contextlib.AbstractContextManager[Any],
) -> str | None:
    shapes = {name: to_shape(tensor.detach()) for name, tensor in tensors.items()}
    args, kwargs = tree_map_only(Tensor, to_shape, call_arguments(doubled(inputs)))
    try:
        with (
            substituted(model, shapes, attributes),
            uncompiled(),
            mode,
            ShapeNorm(),
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
        return first_line(error)
    return None
