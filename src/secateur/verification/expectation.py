"""Record before a cut what a network must compute after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from secateur.batches import too_few_examples
from secateur.graph.capture.program import ExampleInputs, on_device_of
from secateur.graph.channel_graph import AttributeValue, ChannelGraph
from secateur.graph.checking.call_comparison import hidden_change
from secateur.graph.checking.compare import BUFFER, TOLERANCE, Outputs, constant_parts, same_value
from secateur.graph.checking.execution import (
    Judgement,
    described,
    judge,
    moved,
)
from secateur.graph.checking.gradient_hooks import HookErrors, hook_errors, new_hook_error
from secateur.graph.checking.probe import random_for_constant
from secateur.graph.cutting.attributes import attribute_of
from secateur.graph.cutting.fit import misfit
from secateur.graph.cutting.rescale import rescaled
from secateur.graph.cutting.substitute import substituted
from secateur.graph.cutting.tensors import by_tensor, named_tensors, positions_left
from secateur.graph.cutting.ties import Tie, storage_ties
from secateur.graph.propagation.findings import Rescale
from secateur.graph.sizes.recording import Recorded, record_modes
from secateur.graph.substitutes import replacements_in
from secateur.verification.arguments import refuse_model
from secateur.verification.cases import Case, Kind, MaskedOriginal, varying
from secateur.verification.chunks import batchwise
from secateur.verification.original_sizes import original_sizes
from secateur.verification.outcome import Verification

if TYPE_CHECKING:
    from secateur.plan import PruningPlan


@dataclass(frozen=True)
class Expectation:
    """What a network must compute after a plan has been applied; created before the cut.

    Needed for cuts in place, which leave no original to compare with.

    Attributes:
        tolerance: largest relative difference that counts as equal.
        channels_removed: number of channels that the plan removes.
        branches_removed: number of residual branches that it removes.

    Example:
        >>> from secateur.graph.tracing import trace
        >>> from secateur.plan import plan_from
        >>> from secateur.surgery import apply_plan
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.randn(3, 4)
        >>> plan = plan_from(trace(net, x), {"0": [1, 5]})
        >>> expected = Expectation.of(net, plan, x)
        >>> expected.check(apply_plan(net, plan, inplace=True)).ok
        True
    """

    tolerance: float
    channels_removed: int
    branches_removed: int
    _graph: ChannelGraph = field(repr=False)
    _after: ChannelGraph = field(repr=False)
    _cases: tuple[Case, ...] = field(repr=False)
    _tensors: Mapping[str, Tensor] = field(repr=False)
    _versions: tuple[int, ...] = field(repr=False)
    _trainable: Mapping[str, bool] = field(repr=False)
    _attributes: tuple[AttributeValue, ...] = field(repr=False)
    _floats: Mapping[tuple[str, str], float] = field(repr=False)
    _inputs: ExampleInputs = field(repr=False)
    _recorded: Recorded = field(repr=False)
    _hook_errors: HookErrors = field(repr=False)
    _ties: tuple[Tie, ...] = field(repr=False)
    _unrun: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, model: nn.Module, plan: PruningPlan, inputs: ExampleInputs, tolerance: float | None = None
    ) -> Expectation:
        """Run the masked original in evaluation and in training mode, on given and on random inputs.

        Args:
            model: the network before the cut; not changed.
            plan: the plan for it.
            inputs: inputs of the shapes that the graph was traced with; the batch size may differ.
            tolerance: largest relative difference of a slice that counts as equal; 1e-8 by default.

        Returns:
            The expectation.

        Raises:
            UsageError: the plan is not for this network, or the inputs do not have the shapes that the graph
                was traced with, or the network does not run on them.
        """
        refuse_model(model, plan)
        graph = plan.graph
        inputs = graph.wiring.program.ordered(on_device_of(model, inputs))
        after = graph.after(plan)
        held = named_tensors(model)
        tensors = original_sizes(graph, held)
        runs = MaskedOriginal(graph, after, tensors, random_for_constant(held))
        cases, unrun = runs.cases(inputs)
        # The weights are needed again only to compare a difference with rounding noise. Only the plan's
        # tensors change in a cut in place; their old memory is kept until the check.
        return cls(
            TOLERANCE if tolerance is None else tolerance,
            plan.channels_removed,
            plan.branches_removed,
            graph,
            after,
            cases,
            tensors,
            _versions(tensors),
            {name: parameter.requires_grad for name, parameter in model.named_parameters()},
            graph.attributes_after(plan),
            _float_attributes(model),
            inputs,
            record_modes(model, inputs, graph.wiring.program.hidden_in),
            _errors_of_hooks(model),
            storage_ties(held),
            unrun,
        )

    def check(self, pruned: nn.Module) -> Verification:
        """Compare a cut network with the expectation.

        Args:
            pruned: the network after the cut; run in float64 without a copy, and not changed.

        Returns:
            The outcome.
        """
        different = self._different_parts(pruned)
        if different:
            return self._outcome(Judgement(float("inf"), self.tolerance, problem=different), (), set(), [])
        changed = self._changed_values(pruned)
        worst = Judgement(0.0, self.tolerance)
        not_checked = [*self._unrun, *self._lost_ties(pruned)]
        compared: list[Case] = []
        noisy: set[tuple[Kind, str]] = set()
        for planned in self._cases:
            training = planned.program.training
            try:
                case, found = self._answer(pruned, planned)
            except Exception as error:  # noqa: BLE001 - the user's code may fail in any way
                if training and too_few_examples(error) is not None:
                    not_checked.append("training mode (a batch of one example has no batch statistics)")
                    continue
                reason = f"the forward pass fails ({described(error)})"
                worst = Judgement(float("inf"), self.tolerance, problem=reason)
                break
            noise = partial(self._noise, case)
            others = [other.expected for other in self._cases if other.is_repetition_of(planned)]
            judged = judge(case.expected, found, noise, self.tolerance, others)
            compared.append(case)
            noisy.update((case.kind, path) for path in judged.noisy)
            if found.without_gradients is not None:
                not_checked.append(f"training mode with gradients ({found.without_gradients})")
            if judged.times > worst.times or (judged.error > worst.error and worst.times <= 1):
                worst = judged
            if judged.problem is not None:
                break
        if worst.problem is None:
            worst = replace(
                worst, problem=changed or self._failing_hook(pruned) or self._hidden_change(pruned)
            )
        return self._outcome(worst, compared, noisy, not_checked)

    def _different_parts(self, pruned: nn.Module) -> str | None:
        """Compare shapes, kinds and attributes; kernels may read beyond a tensor that is too small."""
        return (
            misfit(pruned, self._after.tensors)
            or self._different_modules(pruned)
            or self._different_tensors(pruned)
            or self._different_attributes(pruned)
        )

    def _different_tensors(self, pruned: nn.Module) -> str | None:
        """Compare what tensors are, apart from their shapes and values."""
        tensors, parameters = named_tensors(pruned), dict(pruned.named_parameters())
        for name in parameters:
            if name not in self._after.tensors:
                return f"the original has no parameter '{name}', or it is tied to another there"
        for name in self._after.tensors:
            dtype = self._tensors[name].dtype
            if name in self._trainable and name not in parameters:
                return f"'{name}' is not a parameter"
            if tensors[name].dtype != dtype:
                return f"'{name}' is of {tensors[name].dtype} instead of {dtype}"
            if name in parameters and parameters[name].requires_grad != self._trainable.get(name):
                return f"requires_grad of '{name}' is {parameters[name].requires_grad}"
        return None

    def _different_attributes(self, pruned: nn.Module) -> str | None:
        """Compare integer attributes with the plan, and floats with those of the original."""
        for item in self._attributes:
            value = attribute_of(pruned.get_submodule(item.module), item.name)
            value = value if item.index is None else value[item.index]
            if value != item.value:
                return f"'{item.module}.{item.name}' is {value} instead of {item.value}"
        found = _float_attributes(pruned)
        for place, number in self._floats.items():
            if self._after.is_replaced(place[0]):
                continue
            if not same_value(number, found.get(place)):
                return f"'{'.'.join(filter(None, place))}' is {found.get(place)} instead of {number}"
        return None

    def _different_modules(self, pruned: nn.Module) -> str | None:
        """Compare the modules that were replaced with those that the removed branches lose."""
        found = {item.path: item for item in replacements_in(pruned)}
        for item in self._after.replacements:
            if found.get(item.path) != item:
                return f"'{item.path}' was not replaced, though its residual branch is removed"
        return None

    def _changed_values(self, pruned: nn.Module) -> str | None:
        """Compare every tensor with the part of the original that the plan keeps."""
        wiring = self._graph.wiring
        kept = by_tensor(positions_left(ChannelGraph.whole(wiring), self._after))
        lengths = rescaled(wiring.rescales, self._tensors, kept)
        for name, tensor in named_tensors(pruned).items():
            if name not in self._after.tensors:
                continue
            left = self._after.left_of(name, self._tensors[name])
            if name in lengths:
                # A product with a ratio of norms, whose sums may be computed in another order.
                own = torch.finfo(tensor.dtype).eps
                equal = torch.allclose(tensor.detach().to(left.device), lengths[name], 8 * own, 0.0)
            else:
                equal = _equal(tensor.detach(), left)
            if not equal:
                return f"'{name}' does not have the values that the plan keeps"
        return None

    def _lost_ties(self, pruned: nn.Module) -> list[str]:
        """Name the tensors that shared memory in the original: what a step of training does differs now."""
        found = set(storage_ties(named_tensors(pruned)))
        return [
            f"training of '{tie.first}' and '{tie.second}' (they no longer share memory)"
            for tie in self._ties
            if {tie.first, tie.second} <= self._after.tensors.keys() and tie not in found
        ]

    def _failing_hook(self, pruned: nn.Module) -> str | None:
        """Call the gradient hooks of parameters, which no forward pass runs."""
        return new_hook_error(self._hook_errors, _errors_of_hooks(pruned))

    def _hidden_change(self, pruned: nn.Module) -> str | None:
        """Compare numbers that no output may show: with which code draws at random, or limits values."""
        fewer = len(self._after.replacements) > 0
        return hidden_change(pruned, self._inputs, self._recorded, fewer=fewer)

    def _answer(self, pruned: nn.Module, case: Case) -> tuple[Case, Outputs]:
        """Run the cut network; code that refuses float64 is run in its own dtype, as is the reference."""
        try:
            return case, _run(pruned, case)
        except Exception:
            if case.compared.native:
                raise
            compared = replace(case.compared, native=True)
            expected = compared.run_masked(case.weights.original, case.inputs)
            case = replace(case, compared=compared, expected=expected)
            return case, _run(pruned, case)

    def _noise(self, case: Case, rounded: bool) -> Outputs:
        if _versions(self._tensors) != self._versions:
            return case.expected  # the weights have changed by now, so their noise is not comparable
        cut = tuple(item for item in self._graph.wiring.rescales if self._is_cut(item))
        tensors, inputs = moved(
            case.weights.original, case.inputs, coarse=rounded, native=case.compared.native, rescales=cut
        )
        return batchwise(case.compared.forward, inputs, partial(case.compared.run_masked, tensors))

    def _is_cut(self, item: Rescale) -> bool:
        wiring = self._graph.wiring
        spans = [self._graph.span(item.direction, dim) for dim in range(len(wiring.shapes[item.direction]))]
        return any(self._after.removed[span].any() for span in spans)

    def _outcome(
        self,
        worst: Judgement,
        compared: Sequence[Case],
        noisy: set[tuple[Kind, str]],
        not_checked: list[str],
    ) -> Verification:
        still = _still_parts(compared)
        counted = 0
        for case in compared:
            unseen = {*still[case.kind], *(path for kind, path in noisy if kind == case.kind)}
            counted += varying(case.expected, unseen)
        constant = set.intersection(*still.values()) if still else set[str]()
        not_checked += [f"{path} (does not depend on the inputs)" for path in sorted(constant)]
        objects = {place: kind for case in compared for place, kind in case.program.left_out.items()}
        not_checked += [
            f"output{place} (an object of {kind}, whose tensors are not known)"
            for place, kind in objects.items()
        ]
        buffers = {path for _, path in noisy if path.startswith(f"output{BUFFER}")}
        not_checked += [
            f"{path} (rounding noise is too large)" for _, path in sorted(noisy) if path not in buffers
        ]
        if buffers:
            not_checked.append(
                f"{len(buffers)} buffers that training writes (they contain only rounding noise)"
            )
        native = any(case.compared.native or case.expected.rounded for case in compared)
        modes = {case.program.training: None for case in compared}
        return Verification(
            max_error=worst.error,
            tolerance=worst.allowed,
            outputs=counted,
            channels_removed=self.channels_removed,
            branches_removed=self.branches_removed,
            inputs=sum(1 for case in compared if not any(case.kind)),
            modes=tuple("training" if training else "evaluation" for training in modes),
            precision="float64" if not native else "float64 and the model's own precision",
            not_checked=tuple(dict.fromkeys(not_checked)),
            problem=worst.problem,
        )


def _run(pruned: nn.Module, case: Case) -> Outputs:
    """Run the cut network on the inputs of a case."""
    changed = substituted(pruned, case.weights.pruned) if case.weights.is_prepared else nullcontext()
    whole = case.compared.native or not case.program.training
    with changed:
        run = partial(case.compared.run_cut, pruned)
        return batchwise(case.compared.forward, case.inputs, run, whole=whole)


def _errors_of_hooks(model: nn.Module) -> HookErrors:
    """Call the gradient hooks of parameters on copies of them."""

    def copied() -> AbstractContextManager[None]:
        tensors = {name: tensor.detach().clone() for name, tensor in named_tensors(model).items()}
        return substituted(model, tensors)

    return hook_errors(model, copied)


def _versions(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    return tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors.values())


def _still_parts(compared: Sequence[Case]) -> dict[Kind, set[str]]:
    """Find the outputs that do not depend on the inputs, for each kind of case."""
    runs: dict[Kind, list[Outputs]] = {}
    for case in compared:
        runs.setdefault(case.kind, []).append(case.expected)
    still = {kind: set(constant_parts(found)) for kind, found in runs.items()}
    for kind, found in runs.items():
        # A single run cannot show this: it is as in evaluation mode, or as with the real weights.
        evaluated = Kind(training=False, prepared=kind.prepared)
        if len(found) == 1 and kind.training and evaluated in runs:
            still[kind] = still[evaluated]
        elif len(found) == 1 and (kind.training or kind.prepared):
            still[kind] = still[Kind(training=False, prepared=False)]
    return still


def _float_attributes(model: nn.Module) -> dict[tuple[str, str], float]:
    """Collect the floats that modules store, such as the probability of dropout, by module and name."""
    return {
        (path, name): value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if type(value) is float and not name.startswith("_")
    }


def _equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors of one shape and dtype have equal values; NaN equals NaN."""
    one, other = (item.to_dense() if item.layout is not torch.strided else item for item in (one, other))
    one = one.to(other.device)
    if torch.equal(one, other):
        return True
    return bool(((one == other) | ((one != one) & (other != other))).all())
