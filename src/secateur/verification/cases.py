"""Run the masked original on several inputs, with the real and with prepared weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from secateur.errors import UsageError
from secateur.formats import listed
from secateur.graph.capture.program import ExampleInputs, Program
from secateur.graph.channel_graph import ChannelGraph
from secateur.graph.checking.compare import BUFFER, Outputs, constant_parts
from secateur.graph.checking.draws import jittered, random_inputs
from secateur.graph.checking.execution import ComparedPass, described
from secateur.graph.checking.probe import lively
from secateur.graph.cutting.rescale import rescaled
from secateur.graph.cutting.tensors import by_tensor, positions_left
from secateur.graph.ungrouped import UNUSED
from secateur.graph.wiring import Pass
from secateur.verification.chunks import batchwise, chunks, cycled
from secateur.verification.original_sizes import original_size

_DRAWS = 2
"""Random draws of inputs."""


_EXAMPLES, _CHEAP = 24, 20_000_000
"""Smallest number of random examples, and the most MACs of a forward pass for which it applies."""


class Kind(NamedTuple):
    """The common properties of cases that differ only in their inputs."""

    training: bool
    """Whether the network ran in training mode."""
    prepared: bool
    """Whether some weights were not the real ones."""


@dataclass(frozen=True)
class WeightPair:
    """The weights of both networks in a comparison.

    Attributes:
        original: parameters and buffers of the masked original by name, in the original sizes.
        pruned: replacements of tensors of the cut network while it runs: nothing for the real weights; for
            the prepared ones, random values in place of constant tensors.
    """

    original: Mapping[str, Tensor]
    pruned: Mapping[str, Tensor]

    @property
    def is_prepared(self) -> bool:
        """Return whether some weights are not the real ones."""
        return bool(self.pruned)


@dataclass(frozen=True)
class Case:
    """One run of the masked original.

    Attributes:
        compared: the pass that was run, in the dtype of the weights if it does not run in float64.
        weights: the real or the prepared ones.
        inputs: of the pass.
        expected: its outputs.
    """

    compared: ComparedPass = field(repr=False)
    weights: WeightPair = field(repr=False)
    inputs: ExampleInputs = field(repr=False)
    expected: Outputs = field(repr=False)

    @property
    def program(self) -> Program:
        """Return the captured pass."""
        return self.compared.forward.program

    @property
    def kind(self) -> Kind:
        """Return what is common to cases that differ only in their inputs."""
        return Kind(self.program.training, self.weights.is_prepared)

    def is_repetition_of(self, other: Case) -> bool:
        """Return whether it is another run of the same pass with the same weights."""
        return self is not other and self.kind == other.kind


class MaskedOriginal:
    """Run the masked original on several inputs."""

    def __init__(
        self,
        graph: ChannelGraph,
        after: ChannelGraph,
        tensors: Mapping[str, Tensor],
        drawn: Mapping[str, Tensor],
    ) -> None:
        self._graph = graph
        self._after = after
        self._weights = WeightPair(tensors, {})
        self._prepared = _prepared(graph, after, tensors, drawn)
        self._drawn = tuple(drawn)

    def cases(self, inputs: ExampleInputs) -> tuple[tuple[Case, ...], tuple[str, ...]]:
        """Run all cases, and list what could not be run."""
        evaluation, training = self._graph.wiring.evaluation, self._graph.wiring.training
        try:
            cases = [self._case(evaluation, self._weights, inputs)]
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(f"the network does not run on these inputs: {described(error)}") from error
        chunk = next(iter(chunks(evaluation, inputs)))[0]
        for seed in range(1, self._draws() + 1):
            found = self._first(
                evaluation,
                self._weights,
                [random_inputs(evaluation.program, chunk, seed), jittered(chunk, seed)],
            )
            cases += [] if found is None else [found]
        unrun = [] if len(cases) > 1 else ["random inputs (the network does not run on them)"]
        weights = self._weights
        if self._prepared.is_prepared:
            prepared = self._prepared_cases(cases, chunk)
            cases += prepared
            if prepared:
                weights = self._prepared
            else:
                unrun.append(
                    f"what {_quoted(self._drawn)} may hide (the network runs with these values only)"
                )
        unread = [name for name, reason in self._graph.wiring.ungrouped.items() if reason == UNUSED]
        if unread:
            unrun.append(f"what uses {_quoted(unread)} (no captured pass does)")
        if not training.program.complete:
            return tuple(cases), (*unrun, "training mode (it could not be captured)")
        part = chunk if training.program.derived else cycled(training, chunk)
        trained = self._training_cases(cases, weights, part)
        if not trained and weights.is_prepared:
            trained = self._training_cases(cases, self._weights, part)
        if not trained:
            unrun.append("training mode (the network does not run in it)")
        cases += trained
        return tuple(cases), tuple(unrun)

    def _training_cases(
        self, evaluated: Sequence[Case], weights: WeightPair, chunk: ExampleInputs
    ) -> list[Case]:
        """Run the training-mode pass on one input.

        If an output does not depend on the inputs in evaluation mode, a second input shows whether it does
        in training mode.
        """
        forward = self._graph.wiring.training
        same = [case.expected for case in evaluated if case.weights is weights]
        choices = [
            [random_inputs(forward.program, chunk, 0), chunk],
            [random_inputs(forward.program, chunk, 1), jittered(chunk, 1)],
        ]
        found = [self._first(forward, weights, item) for item in choices[: 2 if constant_parts(same) else 1]]
        return [case for case in found if case is not None]

    def _prepared_cases(self, real: Sequence[Case], chunk: ExampleInputs) -> list[Case]:
        """Run the evaluation-mode pass with prepared weights, on one input.

        If an output does not depend on the inputs with the real weights, it may with the prepared ones,
        which two inputs show. If it still does not, all layers are scaled as well.
        """
        still = bool(constant_parts([case.expected for case in real]))
        found = self._prepared_runs(self._prepared, chunk, 2 if still else 1)
        if still and found and constant_parts([case.expected for case in found]):
            # Signals become small in a deep network that was never trained, or from which much was removed.
            self._prepared = self._lively(found[0])
            found = self._prepared_runs(self._prepared, chunk, 2)
        return found if all(varying(case.expected, ()) for case in found) else []

    def _prepared_runs(self, weights: WeightPair, chunk: ExampleInputs, count: int) -> list[Case]:
        """Run the evaluation-mode pass on some inputs; empty if it does not run with these weights."""
        forward = self._graph.wiring.evaluation
        found = []
        for seed in range(3, 3 + count):
            inputs = [random_inputs(forward.program, chunk, seed), jittered(chunk, seed), chunk]
            case = self._first(forward, weights, inputs)
            if case is None:
                return []
            found.append(case)
        return found

    def _lively(self, case: Case) -> WeightPair:
        """Scale all layers so that the inputs of a case affect the outputs."""
        before = case.weights.original
        try:
            changed = lively(case.compared.forward, before, case.inputs, self._after.removed).tensors
        except Exception:  # noqa: BLE001 - operators may refuse values in any way
            return case.weights
        drawn = {name: item for name, item in changed.items() if item is not self._weights.original[name]}
        return _prepared(self._graph, self._after, self._weights.original, drawn)

    def _draws(self) -> int:
        """Choose more draws if a pass is cheap and has few examples: a unit may be zero on all of them."""
        batch = max(1, self._graph.wiring.program.batch)
        cheap = self._graph.cost().macs * batch <= _CHEAP
        return max(_DRAWS, -(-_EXAMPLES // batch)) if cheap else _DRAWS

    def _first(self, forward: Pass, weights: WeightPair, choices: Sequence[ExampleInputs]) -> Case | None:
        """Run the first of several inputs that the network accepts."""
        for inputs in choices:
            try:
                return self._case(forward, weights, inputs)
            except Exception:  # noqa: BLE001 - operators may refuse values in any way
                continue
        return None

    def _case(self, forward: Pass, weights: WeightPair, inputs: ExampleInputs) -> Case:
        compared = ComparedPass(forward, self._after)
        try:
            outputs = batchwise(forward, inputs, partial(compared.run_masked, weights.original))
        except (RuntimeError, TypeError):
            compared = replace(compared, native=True)
            outputs = compared.run_masked(weights.original, inputs)
        return Case(compared, weights, inputs, outputs)


def varying(outputs: Outputs, constant: Collection[str]) -> int:
    """Count the finite values of outputs that depend on the inputs; buffers are not outputs."""
    return sum(
        int(torch.isfinite(leaf).sum())
        for path, leaf in zip(outputs.paths, outputs.leaves, strict=True)
        if isinstance(leaf, Tensor) and not path.startswith(BUFFER) and f"output{path}" not in constant
    )


def _prepared(
    graph: ChannelGraph, after: ChannelGraph, tensors: Mapping[str, Tensor], drawn: Mapping[str, Tensor]
) -> WeightPair:
    """Put drawn values in place of constant tensors, and cut all of them; sizes are those before the cut."""
    original = {**tensors, **{name: original_size(graph, name, tensor) for name, tensor in drawn.items()}}
    pruned = {name: after.left_of(name, original[name]) for name in drawn}
    rescales = [item for item in graph.wiring.rescales if {item.length, item.direction} & drawn.keys()]
    # In float64, so that the comparison sees no rounding of the lengths.
    names = {name for item in rescales for name in (item.length, item.direction)}
    kept = by_tensor(positions_left(ChannelGraph.whole(graph.wiring), after))
    pruned |= rescaled(rescales, {name: original[name].double() for name in names}, kept)
    return WeightPair(original, pruned)


def _quoted(names: Sequence[str]) -> str:
    return listed([f"'{name}'" for name in names])
