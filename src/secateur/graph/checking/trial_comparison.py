"""Compare a network that was cut on trial with the masked original."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur._compat import FakeTensorMode, tree_map_only
from secateur.code_state import code_state
from secateur.errors import SecateurError, TraceError
from secateur.graph.branches import Replacement
from secateur.graph.capture.nodes import module_path
from secateur.graph.capture.program import ExampleInputs, call_arguments, doubled, mode_of
from secateur.graph.capture.quiet import quiet_fakes, uncompiled
from secateur.graph.channel_graph import AttributeValue, ChannelGraph, Keep
from secateur.graph.checking.call_comparison import changed_factor, hidden_change
from secateur.graph.checking.compare import TOLERANCE, Outputs, constant_parts
from secateur.graph.checking.draws import jittered, random_inputs
from secateur.graph.checking.execution import (
    ComparedPass,
    Judgement,
    described,
    judge,
    moved,
    run_network,
)
from secateur.graph.checking.gradient_hooks import HookErrors, hook_errors, new_hook_error
from secateur.graph.checking.probe import Weights, lively, scrambled
from secateur.graph.cutting.rescale import rescaled
from secateur.graph.cutting.substitute import substituted
from secateur.graph.cutting.tensors import by_tensor, cut_tensor, named_tensors, positions_left
from secateur.graph.groups import IntArray
from secateur.graph.sizes.recording import Recorded, record_modes, record_run
from secateur.graph.sizes.shape_passes import ShapeMode
from secateur.graph.wiring import Pass
from secateur.outputs import parts_of
from secateur.untouched import StateRecord

_NUMBERS = frozenset(("p", "momentum", "dropout"))
"""Attributes of layers that only training mode reads."""

_COARSE = 1e-2
"""Relative difference at which a trial in float32 is made once more in float64."""

_FAR = 1e-2
"""Relative change of an output between inputs, above which an error in an early layer reaches it too."""

_BLUR = 1e-4
"""Difference in float32, relative to the usual size of an output, that may be rounding."""


class _Precision(Enum):
    """The dtype in which both sides of a comparison run."""

    FLOAT64 = "float64"
    QUICK = "that of the weights, with a large tolerance; a difference is confirmed in float64"
    NATIVE = "that of the weights, since the network runs in no other"

    @property
    def is_native(self) -> bool:
        """Return whether it is the dtype of the weights."""
        return self is not _Precision.FLOAT64


@dataclass(frozen=True)
class Way:
    """How a trial compares.

    Attributes:
        draw: which inputs it uses: one of two random draws, or those of the user.
        exact: whether it compares in float64 at once, instead of in float32 first.
        training: whether it compares in training mode too.
        scaled: whether it runs on other inputs too, to see how far the outputs move.
        lively: whether other weights are taken if the outputs hardly change with the inputs.
    """

    draw: int
    exact: bool = False
    training: bool = False
    scaled: bool = True
    lively: bool = False


@dataclass(frozen=True)
class Failure:
    """What is wrong with a cut.

    Attributes:
        reason: in words.
        unseen: nothing could be compared, since the outputs do not depend on the inputs.
        differs: the network runs and computes something else than the masked original.
        noisy: part of an output moves so little that rounding noise hides every difference.
        early: the evaluation-mode pass alone shows it.
    """

    reason: str
    unseen: bool = False
    differs: bool = False
    noisy: bool = False
    early: bool = False


_UNSEEN = Failure("the outputs do not depend on the inputs, so nothing could be checked", unseen=True)


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

    way: Way
    weights: Weights
    after: ChannelGraph
    kept: Mapping[str, Mapping[int, IntArray]]
    tensors: Mapping[str, Tensor]
    attributes: Sequence[AttributeValue]
    replacements: Sequence[Replacement]
    found: Outputs | None = None
    other: Outputs | None = None


class TrialComparison:
    """One network with scrambled constants, to be cut and compared again and again.

    Args:
        model: the network; not changed.
        graph: its channel graph.
        inputs: example inputs.
        recorded: what is known already of what the network runs in its modes.
    """

    def __init__(
        self, model: nn.Module, graph: ChannelGraph, inputs: ExampleInputs, recorded: Recorded
    ) -> None:
        self._model = model
        self._graph = graph
        self._inputs = inputs
        self._known = recorded
        self._state = StateRecord(model, weights=False)
        self._scrambled = Weights(scrambled(named_tensors(model)))
        self._finite: bool | None = None  # known once the network itself has run
        program = graph.wiring.program
        self._draws = [*(random_inputs(program, inputs, seed) for seed in (1, 2)), inputs]
        self._mild = False  # whether the draws are close to the given inputs
        self._precision = _Precision.FLOAT64  # until the network is found not to run in it
        dtypes = {tensor.dtype for tensor in self._scrambled.tensors.values() if tensor.is_floating_point()}
        self._runs_in_float32 = dtypes <= {torch.float32, torch.float64}

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
            except TraceError:
                raise
            except Exception as error:
                raise TraceError(
                    f"the network does not run on the example inputs ({described(error)}); correct them"
                ) from error
            self._finite = _is_finite(found)
        return self._finite

    def failure_of(self, plan: Keep, way: Way, *, prepared: bool = False) -> Failure | None:
        """Cut the network by a plan and compare it with the masked original.

        Args:
            plan: what to keep.
            way: how to compare.
            prepared: with weights with which the inputs affect the outputs of the narrow network.

        Returns:
            What is wrong with the cut, ``None`` if it is right.
        """
        failure = self._failure(plan, way, prepared)
        if failure is not None and failure.noisy and not prepared:
            # The weights at hand show nothing there, so weights with which the output moves must show it.
            return self._failure(plan, way, prepared=True)
        return failure

    def _failure(self, plan: Keep, way: Way, prepared: bool) -> Failure | None:
        """Make one comparison, with the weights at hand or with prepared ones."""
        cut = self._cut(plan, way, self._prepared(plan) if prepared else self._scrambled)
        if way.lively:
            cut = self._lively(cut, plan)
        # In float32 first, unless float64 is required; a difference is confirmed in float64.
        if not way.exact and self._runs_in_float32 and self._precision is _Precision.FLOAT64:
            failure = self._compared(cut, _Precision.QUICK)
            if failure is None or failure.unseen or (failure.noisy and not prepared):
                return failure
        failure = self._compared(cut, self._precision)
        if failure is None or failure.unseen or self._precision.is_native or not self._needs_native():
            return failure
        self._precision = _Precision.NATIVE
        return self._compared(replace(cut, found=None), self._precision)

    def changed_factor(self, plan: Keep) -> str | None:
        """Find an operator that gets another number after a cut, since code makes it from a width.

        Args:
            plan: what to keep.

        Returns:
            The operator, with its module; ``None`` if there is none.
        """
        cut = self._cut(plan, Way(0), self._scrambled)
        before = record_run(self._model, self._inputs, training=False)
        with self._substituted(cut.tensors, cut):
            after = record_run(self._model, self._inputs, training=False)
        return changed_factor(before, after)

    def _prepared(self, plan: Keep) -> Weights:
        """Prepare weights with which the inputs affect the outputs of the masked original."""
        forward, removed = self._graph.wiring.evaluation, self._graph.after(plan).removed
        for _ in range(2):
            try:
                return lively(forward, self._scrambled.tensors, self._draws[1], removed)
            except Exception:  # noqa: BLE001 - operators may refuse values in any way
                self._draw_closer()
        return Weights(self._scrambled.tensors)

    def _cut(self, plan: Keep, way: Way, weights: Weights) -> _TrialCut:
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
            found = self._run_cut(cut, evaluation, self._draws[cut.way.draw], self._precision)
            other = self._quick_run(cut, self._draws[1 - cut.way.draw])
        except Exception:  # noqa: BLE001 - the comparison runs it once more, and reports it
            return cut
        if _far(found, other):
            return replace(cut, found=found, other=other)
        prepared = self._prepared(plan)
        return replace(self._cut(plan, cut.way, prepared), other=prepared.outputs)

    def _compared(self, cut: _TrialCut, precision: _Precision) -> Failure | None:
        """Compare the passes of a cut network with those of the masked original."""
        wiring = self._graph.wiring
        try:
            failure = self._compared_pass(cut, wiring.evaluation, cut.way.draw, precision)
            if failure is not None:
                return replace(failure, early=True)
            if not cut.way.training:
                return None
            if not wiring.training.program.derived:
                failure = self._compared_pass(cut, wiring.training, 1, precision)
                if failure is not None:
                    return replace(failure, reason=f"in training mode, {failure.reason}")
        except SecateurError as error:
            return Failure(str(error))
        return self._training_fails(cut, precision) or self._hooks_fail(cut) or self._hidden_changes(cut)

    def _compared_pass(
        self, cut: _TrialCut, forward: Pass, draw: int, precision: _Precision
    ) -> Failure | None:
        """Compare one pass of a cut network with that of the masked original.

        Args:
            cut: the cut.
            forward: the pass.
            draw: number of the inputs to run it with.
            precision: of both.
        """
        training = forward.program.training
        inputs = self._drawn(forward, draw)
        quick, native = precision is _Precision.QUICK, precision.is_native
        compared = ComparedPass(forward, cut.after, native)

        def noise(rounded: bool) -> Outputs:
            return compared.run_masked(*moved(cut.weights.tensors, inputs, coarse=rounded, native=native))

        try:
            found = (not training and cut.found) or self._run_cut(cut, forward, inputs, precision)
            others = self._others(cut, forward, found, draw)
        except SecateurError:
            raise
        except Exception as error:  # noqa: BLE001 - the user's code may fail in any way
            if not self._mild and self._refuses_draws:
                self._draw_closer()
                weights = replace(cut.weights, outputs=None)
                return self._compared_pass(
                    replace(cut, weights=weights, found=None, other=None), forward, draw, precision
                )
            return Failure(f"the forward pass fails ({described(error)})")
        known = cut.weights.outputs if quick and draw == 1 and not training else None
        try:
            expected = known or compared.run_masked(cut.weights.tensors, inputs)
        except Exception as error:  # noqa: BLE001 - operators may refuse values in any way
            return Failure(f"the masked original does not run ({described(error)})")
        if not _is_finite(expected) and self.runs_as_it_is():
            return Failure("the outputs are infinite or NaN")
        tolerance, blur = (_COARSE, _BLUR) if quick else (TOLERANCE, 0.0)
        failure = _difference(judge(expected, found, noise, tolerance, others, blur))
        if failure is None and others and not training and _all_constant([expected, *others]):
            return _UNSEEN
        return failure

    def _drawn(self, forward: Pass, draw: int) -> ExampleInputs:
        """Return the inputs of a draw, with two examples where the pass was captured with two."""
        one = self._graph.wiring.evaluation.program.batch
        return doubled(self._draws[draw]) if forward.program.batch > one else self._draws[draw]

    @cached_property
    def _refuses_draws(self) -> bool:
        """Return whether the network itself fails on inputs that were drawn at random."""
        random = self._graph.wiring.evaluation.program.is_random
        try:
            for inputs in self._draws[:2]:
                run_network(self._model, inputs, training=False, random=random, native=True)
        except Exception:  # noqa: BLE001 - the user's code may fail in any way
            return True
        return False

    def _draw_closer(self) -> None:
        """Draw inputs that are closer to the given ones."""
        self._draws[:2] = [jittered(self._inputs, seed) for seed in (1, 2)]
        self._mild = True

    def _run_cut(
        self, cut: _TrialCut, forward: Pass, inputs: ExampleInputs, precision: _Precision
    ) -> Outputs:
        """Run the cut network."""
        with self._substituted(self._tensors(cut, precision), cut):
            return ComparedPass(forward, cut.after, precision.is_native).run_cut(
                self._model, inputs, guarded=False
            )

    def _substituted(
        self, tensors: Mapping[str, Tensor], cut: _TrialCut
    ) -> contextlib.AbstractContextManager[None]:
        """Turn the network into the cut one within a block, with some tensors."""
        return substituted(self._model, tensors, cut.attributes, cut.replacements, self._state)

    def _quick_run(self, cut: _TrialCut, inputs: ExampleInputs) -> Outputs:
        """Run the cut network to see how far its outputs move: coarsely, unless a weight is normalised."""
        wiring = self._graph.wiring
        precision = self._precision if wiring.rescales else _Precision.QUICK
        return self._run_cut(cut, wiring.evaluation, inputs, precision)

    def _tensors(self, cut: _TrialCut, precision: _Precision) -> Mapping[str, Tensor]:
        """Collect parameters and buffers of a cut network; normalised weights in float64, not rounded."""
        rescales = self._graph.wiring.rescales
        names = {name for item in rescales for name in (item.length, item.direction)}
        sources = cut.weights.tensors
        if not precision.is_native:
            sources = {name: sources[name].double() for name in names}
        return {**cut.tensors, **rescaled(rescales, sources, cut.kept)}

    def _others(self, cut: _TrialCut, forward: Pass, found: Outputs, draw: int) -> list[Outputs]:
        """Compute outputs for other inputs, which show how far the outputs of the network move."""
        if forward.program.training:
            return [self._run_cut(cut, forward, self._drawn(forward, 1 - draw), self._precision)]
        if not cut.way.scaled:
            return []
        inputs = self._draws[1 - draw]
        other = cut.other or self._quick_run(cut, inputs)
        if other.paths != found.paths:
            return []
        if cut.weights is not self._scrambled and not _far(found, other):
            other = self._run_cut(cut, forward, inputs, self._precision)
        return [other]

    def _needs_native(self) -> bool:
        """Return whether the network runs in the dtype of its weights only."""
        random = self._graph.wiring.evaluation.program.is_random
        tensors = {name: item.clone() for name, item in self._scrambled.tensors.items()}
        try:
            with substituted(self._model, tensors, state=self._state):
                run_network(self._model, self._draws[0], training=False, random=random, guarded=False)
        except Exception:  # noqa: BLE001 - the user's code may fail in any way
            return True
        return False

    def _training_fails(self, cut: _TrialCut, precision: _Precision) -> Failure | None:
        """Return whether the cut network fails in training mode, where the whole one runs."""
        changed = partial(self._substituted, cut=cut)
        error = _training_error(self._model, self._inputs, self._tensors(cut, precision), changed)
        if error is None:
            return None
        whole = partial(substituted, self._model, state=self._state)
        if _training_error(self._model, self._inputs, cut.weights.tensors, whole) is not None:
            return None
        return Failure(f"the training-mode forward pass fails ({error})")

    @cached_property
    def _hook_errors(self) -> HookErrors:
        """Return what goes wrong in gradient hooks of the whole network."""
        whole = {name: item.clone() for name, item in self._scrambled.tensors.items()}
        return hook_errors(self._model, partial(substituted, self._model, whole, state=self._state))

    def _hooks_fail(self, cut: _TrialCut) -> Failure | None:
        """Return whether a gradient hook of a parameter fails in the cut network alone."""
        errors = hook_errors(self._model, partial(self._substituted, cut.tensors, cut))
        error = new_hook_error(self._hook_errors, errors) if errors else None
        return Failure(error) if error else None

    @cached_property
    def _hiding(self) -> frozenset[bool]:
        """Return the modes in which the network is known to have numbers that no comparison may see."""
        training = self._graph.wiring.training
        switches = training.program.derived and _has_own_switches(self._model, training)
        return frozenset((*training.program.hidden_in, *([True] if switches else [])))

    @cached_property
    def _recorded(self) -> Recorded:
        """Return what the network runs in these modes, and in each mode that was captured."""
        training = self._graph.wiring.training.program
        captured = [False] if training.derived or training.is_part else [False, True]
        modes = sorted(self._hiding.union(captured), reverse=True)  # what only training does is named first
        recorded = record_modes(
            self._model, self._inputs, [mode for mode in modes if mode not in self._known]
        )
        return {mode: {**self._known, **recorded}[mode] for mode in modes}

    def _hidden_changes(self, cut: _TrialCut) -> Failure | None:
        """Return whether a number changes that no comparison may see, such as that of a draw or a limit."""
        recorded, fewer = self._recorded, len(cut.replacements) > 0
        if fewer:  # a branch takes no width along that channels do not
            recorded = {mode: seen for mode, seen in recorded.items() if mode in self._hiding}
        with self._substituted(cut.tensors, cut):
            change = hidden_change(self._model, self._inputs, recorded, fewer=fewer)
        return Failure(change) if change else None


def _has_own_switches(model: nn.Module, training: Pass) -> bool:
    """Return whether a network calls dropout or a normalisation itself, with numbers that it may compute.

    Layers of PyTorch call them with numbers that they were built with, unless the code assigns others.
    """
    kinds = {type(module) for module in model.modules()}
    if any(code_state(kind).assigned & _NUMBERS for kind in kinds):
        return True
    layers = {
        path for path, module in model.named_modules() if type(module).__module__.startswith("torch.nn.")
    }
    own = (node for node in training.program.graph.nodes if node.name in training.flags)
    return any(module_path(node) not in layers for node in own)


def _difference(judgement: Judgement) -> Failure | None:
    """Return what a comparison found, ``None`` if the outputs are equal."""
    if judgement.problem is not None:
        return Failure(f"the outputs differ from the masked original: {judgement.problem}", differs=True)
    if judgement.noisy:
        return Failure(
            f"rounding noise leaves nothing to compare in {', '.join(judgement.noisy)}", noisy=True
        )
    if not judgement.ok:
        return Failure(
            f"the outputs differ from the masked original (by {judgement.error:.1e} of their size, "
            f"{judgement.place})",
            differs=True,
        )
    return None


def _all_constant(draws: Sequence[Outputs]) -> bool:
    """Return whether no output tensor depends on the inputs."""
    tensors = [leaf for leaf in draws[0].leaves if isinstance(leaf, Tensor) and leaf.numel()]
    return len(constant_parts(draws)) == len(tensors)


def _is_finite(outputs: Outputs) -> bool:
    """Return whether all output values are finite."""
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


_Exchange = Callable[[Mapping[str, Tensor]], contextlib.AbstractContextManager[None]]
"""Gives the network other tensors within a block."""


def _training_error(
    model: nn.Module,
    inputs: ExampleInputs,
    tensors: Mapping[str, Tensor],
    exchange: _Exchange,
) -> str | None:
    """Run the training-mode forward pass on shapes alone and report what goes wrong."""
    error = _run_on_shapes(
        model, inputs, tensors, exchange, lambda tensor: tensor.to("meta"), contextlib.nullcontext()
    )
    if error is None:
        return None
    # Code that makes tensors on a certain device fails on the meta device; fake tensors follow it.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    return _run_on_shapes(model, inputs, tensors, exchange, mode.from_tensor, quiet_fakes(mode))


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
            exchange(shapes),
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
