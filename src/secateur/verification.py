"""Verify a cut: the smaller network must compute what the masked original computes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from secateur._compat import tree_leaves, tree_map_only
from secateur.errors import UsageError
from secateur.graph.capture.program import ExampleInputs, beside, call_arguments
from secateur.graph.capture.wrappers import refuse_wrapped
from secateur.graph.channel_graph import AttributeValue, ChannelGraph
from secateur.graph.checking.compare import BUFFER, TOLERANCE, Outputs, constant_parts, same_parts, same_value
from secateur.graph.checking.draws import jittered, random_inputs
from secateur.graph.checking.execution import (
    Judgement,
    first_line,
    judge,
    moved,
    run_network,
    run_reference,
    written_buffers,
)
from secateur.graph.checking.probe import lively, random_for_constant
from secateur.graph.cutting.attributes import attribute_of
from secateur.graph.cutting.fit import misfit
from secateur.graph.cutting.rescale import rescaled
from secateur.graph.cutting.substitute import substituted
from secateur.graph.cutting.tensors import by_tensor, named_tensors, positions_left
from secateur.graph.propagation.findings import Rescale
from secateur.graph.ungrouped import UNUSED
from secateur.graph.wiring import Pass

if TYPE_CHECKING:
    from secateur.plan import PruningPlan

_DRAWS = 2
"""Random draws of inputs."""

_EXAMPLES, _CHEAP = 24, 20_000_000
"""Random examples that are drawn at least where a forward pass takes no more MACs than that."""


@dataclass(frozen=True)
class Verification:
    """How a cut network compares with the masked original, and what was compared.

    Attributes:
        max_error: largest absolute difference in a slice of an output, relative to how far the slice moves
            between examples and inputs. A slice is one index of a tensor's last dimension or of its
            dimension 1 (channels).
        tolerance: the limit for that slice: 1e-8, or the measured rounding noise times 32 where that is more.
        outputs: number of finite output values that were compared; not those that do not depend on the
            inputs, and not the buffers that training writes to.
        channels_removed: number of channels that the cut removed.
        inputs: number of inputs that were tried: the user's, and random ones of the same shapes.
        modes: modes of the network that were compared.
        precision: what both sides computed in.
        not_checked: what could not be compared, each with the reason.
        problem: what makes the outputs incomparable (another shape, another key), or which tensor or
            attribute is not what the plan leaves, if anything.

    Example:
        >>> found = Verification(max_error=2e-12, tolerance=1e-8, outputs=320, channels_removed=12)
        >>> found.ok, found.to_dict()["max_error"]
        (True, 2e-12)
    """

    max_error: float
    tolerance: float
    outputs: int
    channels_removed: int
    inputs: int = 1
    modes: tuple[str, ...] = ("evaluation",)
    precision: str = "float64"
    not_checked: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the cut network computes what the masked original computes.

        False, too, where nothing could be compared.
        """
        return self.problem is None and self.outputs > 0 and self.max_error <= self.tolerance

    def __str__(self) -> str:
        gap = f"largest relative difference {self.max_error:.1e}, allowed {self.tolerance:.0e}"
        compared = (
            f"{self.outputs} outputs, {self.inputs} {'input' if self.inputs == 1 else 'inputs'}, "
            f"{' and '.join(self.modes)} mode, {self.precision}"
        )
        rest = f"; not checked: {'; '.join(self.not_checked)}" if self.not_checked else ""
        what = f"the original with {self.channels_removed} channels masked"
        if self.ok:
            return f"verified: the smaller network equals {what} ({gap}; {compared}){rest}"
        if self.problem is None and self.outputs == 0:
            return f"NOT CHECKED: nothing could be compared with {what}{rest}"
        return f"WRONG: the smaller network DIFFERS FROM {what} ({self.problem or gap}; {compared}){rest}"

    def to_dict(self) -> dict[str, Any]:
        """The outcome as plain numbers, for files."""
        return {"ok": self.ok, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Verification:
        """Read back what :meth:`to_dict` gave."""
        values = {name: value for name, value in data.items() if name != "ok"}
        for name in ("modes", "not_checked"):
            if name in values:
                values[name] = tuple(values[name])
        return cls(**values)


@dataclass(frozen=True)
class _WeightPair:
    """The weights of both sides of a comparison.

    Attributes:
        original: parameters and buffers of the masked original by name, in the original sizes.
        pruned: what takes the place of tensors of the cut network while it runs: nothing for the real
            weights, random values for those that are constant for the prepared ones.
    """

    original: Mapping[str, Tensor]
    pruned: Mapping[str, Tensor]

    @property
    def is_prepared(self) -> bool:
        """Whether some weights are not the real ones."""
        return bool(self.pruned)


@dataclass(frozen=True)
class _Case:
    """One run of the masked original.

    Attributes:
        forward: the pass that was run.
        weights: the real or the prepared ones.
        inputs: what it was run with.
        expected: what it returned.
        native: whether it ran in the dtype of the weights, because it does not run in float64.
    """

    forward: Pass = field(repr=False)
    weights: _WeightPair = field(repr=False)
    inputs: ExampleInputs = field(repr=False)
    expected: Outputs = field(repr=False)
    native: bool

    @property
    def kind(self) -> _Kind:
        """What cases have in common that differ in their inputs alone."""
        return self.forward.program.training, self.weights.is_prepared

    def is_beside(self, other: _Case) -> bool:
        """Tell whether it is another run of the same pass with the same weights."""
        return self is not other and self.kind == other.kind


_Kind = tuple[bool, bool]
"""Whether a case ran in training mode, and with prepared weights."""


@dataclass(frozen=True)
class Expectation:
    """What a network must compute once a plan has been applied to it; made before the cut.

    Needed for cuts in place, which leave no original to compare with.

    Attributes:
        tolerance: largest relative difference that counts as equal.
        channels_removed: number of channels that the plan removes.

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
    _graph: ChannelGraph = field(repr=False)
    _after: ChannelGraph = field(repr=False)
    _cases: tuple[_Case, ...] = field(repr=False)
    _tensors: Mapping[str, Tensor] = field(repr=False)
    _versions: tuple[int, ...] = field(repr=False)
    _trainable: Mapping[str, bool] = field(repr=False)
    _attributes: tuple[AttributeValue, ...] = field(repr=False)
    _floats: Mapping[tuple[str, str], float] = field(repr=False)
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
        _refuse_model(model, plan)
        graph = plan.graph
        inputs = graph.wiring.program.ordered(beside(model, inputs))
        after = graph.after(plan)
        held = named_tensors(model)
        tensors = original_sizes(graph, held)
        runs = _Reference(graph, after, tensors, random_for_constant(held))
        cases, unrun = runs.cases(inputs)
        # The weights are needed again only if a difference has to be compared with rounding noise; those
        # that a cut in place changes are the plan's, and their old memory is held until the check.
        return cls(
            TOLERANCE if tolerance is None else tolerance,
            plan.channels_removed,
            graph,
            after,
            cases,
            tensors,
            _versions(tensors),
            {name: parameter.requires_grad for name, parameter in model.named_parameters()},
            graph.attributes_after(plan),
            _float_attributes(model),
            unrun,
        )

    def check(self, pruned: nn.Module) -> Verification:
        """Compare a cut network with the expectation.

        Args:
            pruned: the network after the cut; run in float64 without a copy, and left as it was.

        Returns:
            The outcome.
        """
        different = self._different_parts(pruned)
        if different:
            return self._outcome(Judgement(float("inf"), self.tolerance, problem=different), (), set(), [])
        changed = self._changed_values(pruned)
        worst = Judgement(0.0, self.tolerance)
        not_checked = list(self._unrun)
        compared: list[_Case] = []
        noisy: set[tuple[_Kind, str]] = set()
        for planned in self._cases:
            training = planned.forward.program.training
            try:
                case, found = self._answer(pruned, planned)
            except Exception as error:  # noqa: BLE001 - the user's code may fail in any way
                if training and "more than 1 value per channel" in str(error):
                    not_checked.append("training mode (a batch of one example has no batch statistics)")
                    continue
                reason = f"the forward pass fails ({first_line(error)})"
                worst = Judgement(float("inf"), self.tolerance, problem=reason)
                break
            noise = partial(self._noise, case)
            others = [other.expected for other in self._cases if other.is_beside(planned)]
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
            worst = replace(worst, problem=changed)
        return self._outcome(worst, compared, noisy, not_checked)

    def _different_parts(self, pruned: nn.Module) -> str | None:
        """Compare shapes, kinds and attributes; kernels may read beyond a tensor that is too small."""
        wrong = misfit(pruned, self._after.tensors)
        if wrong is not None:
            return wrong
        tensors, parameters = named_tensors(pruned), dict(pruned.named_parameters())
        for name in self._after.tensors:
            dtype = self._tensors[name].dtype
            if name in self._trainable and name not in parameters:
                return f"'{name}' is no parameter"
            if tensors[name].dtype != dtype:
                return f"'{name}' is of {tensors[name].dtype} instead of {dtype}"
            if name in parameters and parameters[name].requires_grad != self._trainable.get(name):
                return f"requires_grad of '{name}' is {parameters[name].requires_grad}"
        for item in self._attributes:
            value = attribute_of(pruned.get_submodule(item.module), item.name)
            value = value if item.index is None else value[item.index]
            if value != item.value:
                return f"'{item.module}.{item.name}' is {value} instead of {item.value}"
        found = _float_attributes(pruned)
        for place, number in self._floats.items():
            if not same_value(number, found.get(place)):
                return f"'{'.'.join(filter(None, place))}' is {found.get(place)} instead of {number}"
        return None

    def _changed_values(self, pruned: nn.Module) -> str | None:
        """Compare every tensor with what the plan leaves of the original one."""
        wiring = self._graph.wiring
        kept = by_tensor(positions_left(ChannelGraph.whole(wiring), self._after))
        lengths = rescaled(wiring.rescales, self._tensors, kept)
        for name, tensor in named_tensors(pruned).items():
            if name not in self._after.tensors:
                continue
            left = self._after.left_of(name, self._tensors[name])
            if name in lengths:
                # A product with a ratio of norms, whose sums may run in another order.
                own = torch.finfo(tensor.dtype).eps
                equal = torch.allclose(tensor.detach().to(left.device), lengths[name], 8 * own, 0.0)
            else:
                equal = _equal(tensor.detach(), left)
            if not equal:
                return f"'{name}' does not hold the values that the plan leaves"
        return None

    def _answer(self, pruned: nn.Module, case: _Case) -> tuple[_Case, Outputs]:
        """Run the cut network; code that refuses float64 is run in its own dtype, and so is the reference."""
        try:
            return case, self._run(pruned, case)
        except Exception:
            if case.native:
                raise
            expected = run_reference(
                case.forward,
                self._after.removed,
                case.weights.original,
                case.inputs,
                native=True,
                watched=self._after if case.forward.program.training else None,
            )
            case = replace(case, expected=expected, native=True)
            return case, self._run(pruned, case)

    def _run(self, pruned: nn.Module, case: _Case) -> Outputs:
        training, random = case.forward.program.training, case.forward.program.is_random
        watched = written_buffers(case.forward) if training else ()
        changed = substituted(pruned, case.weights.pruned) if case.weights.is_prepared else nullcontext()

        def run(part: ExampleInputs) -> Outputs:
            return run_network(
                pruned, part, training=training, random=random, native=case.native, watched=watched
            )

        with changed:
            return _batchwise(case.forward, case.inputs, run, whole=case.native or not training)

    def _noise(self, case: _Case, rounded: bool) -> Outputs:
        cut = tuple(item for item in self._graph.wiring.rescales if self._is_cut(item))
        if _versions(self._tensors) != self._versions:
            return case.expected  # the weights are others by now, so their noise tells nothing
        weights = case.weights.original
        tensors, inputs = moved(weights, case.inputs, coarse=rounded, native=case.native, rescales=cut)

        def run(part: ExampleInputs) -> Outputs:
            watched = self._after if case.forward.program.training else None
            return run_reference(
                case.forward, self._after.removed, tensors, part, native=case.native, watched=watched
            )

        return _batchwise(case.forward, inputs, run)

    def _is_cut(self, item: Rescale) -> bool:
        wiring = self._graph.wiring
        spans = [self._graph.span(item.direction, dim) for dim in range(len(wiring.shapes[item.direction]))]
        return any(self._after.removed[span].any() for span in spans)

    def _outcome(
        self,
        worst: Judgement,
        compared: Sequence[_Case],
        noisy: set[tuple[_Kind, str]],
        not_checked: list[str],
    ) -> Verification:
        still = _still_parts(compared)
        counted = 0
        for case in compared:
            unseen = {*still[case.kind], *(path for kind, path in noisy if kind == case.kind)}
            counted += _varying(case.expected, unseen)
        constant = set.intersection(*still.values()) if still else set[str]()
        not_checked += [f"{path} (does not depend on the inputs)" for path in sorted(constant)]
        objects = {place: kind for case in compared for place, kind in case.forward.program.left_out.items()}
        not_checked += [
            f"output{place} (an object of {kind}, whose tensors are not known)"
            for place, kind in objects.items()
        ]
        buffers = {path for _, path in noisy if path.startswith(f"output{BUFFER}")}
        not_checked += [
            f"{path} (rounding noise is too large)" for _, path in sorted(noisy) if path not in buffers
        ]
        if buffers:
            not_checked.append(f"{len(buffers)} buffers that training writes (they hold but rounding noise)")
        native = any(case.native or case.expected.rounded for case in compared)
        modes = {case.forward.program.training: None for case in compared}
        return Verification(
            max_error=worst.error,
            tolerance=worst.allowed,
            outputs=counted,
            channels_removed=self.channels_removed,
            inputs=sum(1 for case in compared if case.kind == (False, False)),
            modes=tuple("training" if training else "evaluation" for training in modes),
            precision="float64" if not native else "float64 and the model's own precision",
            not_checked=tuple(dict.fromkeys(not_checked)),
            problem=worst.problem,
        )


def _versions(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    return tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors.values())


def _still_parts(compared: Sequence[_Case]) -> dict[_Kind, set[str]]:
    """Find the outputs that do not depend on the inputs, for each kind of case."""
    runs: dict[_Kind, list[Outputs]] = {}
    for case in compared:
        runs.setdefault(case.kind, []).append(case.expected)
    still = {kind: set(constant_parts(found)) for kind, found in runs.items()}
    for (training, prepared), found in runs.items():
        # One run tells nothing by itself: it is compared with another mode, or with the real weights.
        if len(found) == 1 and training and (False, prepared) in runs:
            same = same_parts(runs[False, prepared][0], found[0])
            still[training, prepared] = still[False, prepared].intersection(same)
        elif len(found) == 1 and prepared:
            still[training, prepared] = still[False, False]
    return still


def _varying(outputs: Outputs, constant: Collection[str]) -> int:
    """How many finite values belong to outputs that depend on the inputs; buffers are no outputs."""
    return sum(
        int(torch.isfinite(leaf).sum())
        for path, leaf in zip(outputs.paths, outputs.leaves, strict=True)
        if isinstance(leaf, Tensor) and not path.startswith(BUFFER) and f"output{path}" not in constant
    )


def _float_attributes(model: nn.Module) -> dict[tuple[str, str], float]:
    """The floats that modules hold, such as the probability of dropout, by module and name."""
    return {
        (path, name): value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if type(value) is float and not name.startswith("_")
    }


def _equal(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors of one shape and dtype hold the same values; NaN equals NaN."""
    one, other = (item.to_dense() if item.layout is not torch.strided else item for item in (one, other))
    one = one.to(other.device)
    if torch.equal(one, other):
        return True
    return bool(((one == other) | ((one != one) & (other != other))).all())


class _Reference:
    """The masked original, to be run on several inputs."""

    def __init__(
        self,
        graph: ChannelGraph,
        after: ChannelGraph,
        tensors: Mapping[str, Tensor],
        drawn: Mapping[str, Tensor],
    ) -> None:
        self._graph = graph
        self._after = after
        self._weights = _WeightPair(tensors, {})
        self._prepared = _prepared(graph, after, tensors, drawn)
        self._drawn = tuple(drawn)

    def cases(self, inputs: ExampleInputs) -> tuple[tuple[_Case, ...], tuple[str, ...]]:
        """Run all cases, and say what could not be run."""
        evaluation, training = self._graph.wiring.evaluation, self._graph.wiring.training
        try:
            cases = [self._case(evaluation, self._weights, inputs)]
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(f"the network does not run on these inputs: {first_line(error)}") from error
        portion = next(iter(_portions(evaluation, inputs)))[0]
        for seed in range(1, self._draws() + 1):
            found = self._first(
                evaluation,
                self._weights,
                [random_inputs(evaluation.program, portion, seed), jittered(portion, seed)],
            )
            cases += [] if found is None else [found]
        unrun = [] if len(cases) > 1 else ["random inputs (the network does not run on them)"]
        weights = self._weights
        if self._prepared.is_prepared:
            prepared = self._prepared_cases(cases, portion)
            cases += prepared
            if prepared:
                weights = self._prepared
            else:
                unrun.append(
                    f"what {_listed(self._drawn)} may hide (the network runs with these values only)"
                )
        unread = [name for name, reason in self._graph.wiring.ungrouped.items() if reason == UNUSED]
        if unread:
            unrun.append(f"what uses {_listed(unread)} (no captured pass does)")
        if not training.program.complete:
            return tuple(cases), (*unrun, "training mode (it could not be captured)")
        part = portion if training.program.derived else _cycled(training, portion)
        parts = [random_inputs(training.program, part, 0), part]
        found = self._first(training, weights, parts)
        if found is None and weights.is_prepared:
            found = self._first(training, self._weights, parts)
        if found is None:
            unrun.append("training mode (the network does not run in it)")
        else:
            cases.append(found)
        return tuple(cases), tuple(unrun)

    def _prepared_cases(self, real: Sequence[_Case], portion: ExampleInputs) -> list[_Case]:
        """Run the evaluation-mode pass with prepared weights, on one input.

        Where an output does not depend on the inputs with the real weights, it may with the prepared ones,
        which two inputs show. If it does not even then, all layers are scaled as well.
        """
        still = bool(constant_parts([case.expected for case in real]))
        found = self._prepared_runs(self._prepared, portion, 2 if still else 1)
        if still and found and constant_parts([case.expected for case in found]):
            # Signals fade in a deep network that was never trained, or from which much was removed.
            self._prepared = self._lively(found[0])
            found = self._prepared_runs(self._prepared, portion, 2)
        return found if all(_varying(case.expected, ()) for case in found) else []

    def _prepared_runs(self, weights: _WeightPair, portion: ExampleInputs, count: int) -> list[_Case]:
        """Run the evaluation-mode pass on some inputs; empty if it does not run with these weights."""
        forward = self._graph.wiring.evaluation
        found = []
        for seed in range(3, 3 + count):
            inputs = [random_inputs(forward.program, portion, seed), jittered(portion, seed), portion]
            case = self._first(forward, weights, inputs)
            if case is None:
                return []
            found.append(case)
        return found

    def _lively(self, case: _Case) -> _WeightPair:
        """Scale all layers so that what the inputs of a case say reaches the outputs."""
        before = case.weights.original
        try:
            changed = lively(case.forward, before, case.inputs, self._after.removed).tensors
        except Exception:  # noqa: BLE001 - operators may refuse values in any way
            return case.weights
        drawn = {name: item for name, item in changed.items() if item is not self._weights.original[name]}
        return _prepared(self._graph, self._after, self._weights.original, drawn)

    def _draws(self) -> int:
        """More draws where a pass is cheap and has few examples: a unit may be silent on all of them."""
        batch = max(1, self._graph.wiring.program.batch)
        cheap = self._graph.cost().macs * batch <= _CHEAP
        return max(_DRAWS, -(-_EXAMPLES // batch)) if cheap else _DRAWS

    def _first(self, forward: Pass, weights: _WeightPair, choices: Sequence[ExampleInputs]) -> _Case | None:
        """The first of several inputs that the network accepts."""
        for inputs in choices:
            try:
                return self._case(forward, weights, inputs)
            except Exception:  # noqa: BLE001 - operators may refuse values in any way
                continue
        return None

    def _case(self, forward: Pass, weights: _WeightPair, inputs: ExampleInputs) -> _Case:
        removed, tensors = self._after.removed, weights.original
        watched = self._after if forward.program.training else None

        def run(part: ExampleInputs) -> Outputs:
            return run_reference(forward, removed, tensors, part, watched=watched)

        try:
            return _Case(forward, weights, inputs, _batchwise(forward, inputs, run), native=False)
        except (RuntimeError, TypeError):
            outputs = run_reference(forward, removed, tensors, inputs, native=True, watched=watched)
            return _Case(forward, weights, inputs, outputs, native=True)


def _prepared(
    graph: ChannelGraph, after: ChannelGraph, tensors: Mapping[str, Tensor], drawn: Mapping[str, Tensor]
) -> _WeightPair:
    """Put random values in place of constant tensors, and cut them for the other side as the plan says.

    Args:
        graph: of the network before the cut.
        after: of the network after it.
        tensors: parameters and buffers before the cut, in the original sizes.
        drawn: random values by name, in the sizes before the cut.
    """
    original = {**tensors, **{name: original_size(graph, name, tensor) for name, tensor in drawn.items()}}
    pruned = {name: after.left_of(name, original[name]) for name in drawn}
    rescales = [item for item in graph.wiring.rescales if {item.length, item.direction} & drawn.keys()]
    # In float64, so that the comparison sees no rounding of the lengths.
    names = {name for item in rescales for name in (item.length, item.direction)}
    kept = by_tensor(positions_left(ChannelGraph.whole(graph.wiring), after))
    pruned |= rescaled(rescales, {name: original[name].double() for name in names}, kept)
    return _WeightPair(original, pruned)


def _listed(names: Sequence[str]) -> str:
    """The first three of some names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in names[:3]) + more


def verify(
    model: nn.Module,
    pruned: nn.Module,
    plan: PruningPlan,
    inputs: ExampleInputs,
    tolerance: float | None = None,
) -> Verification:
    """Compare a cut network with the original in which the removed channels are held at zero.

    Every tensor must hold what the plan leaves of the original one, bit for bit. Both networks are then run.
    Every operator of the original that contracts over channels sees zeros in place of the removed ones;
    normalisation over channels takes its statistics from the kept ones. Both sides compute in float64,
    whatever the dtype of the model, on the given inputs and on random draws of the same shapes (two; more
    where a pass is cheap and has few examples), in evaluation and in training mode, there with the buffers
    that the pass writes to. Dropout keeps everything on both sides, and other random numbers are the
    same. Every slice of every output is judged on its own scale. Other values than tensors, and the keys of
    dictionaries, must be equal. An output that does not depend on the inputs counts as not checked. Where
    parameters or buffers hold one value throughout, which may hide a branch, both networks are run with
    random values in their place as well.

    Nothing is changed: no attribute, parameter, buffer, hook, mode or random state. What is needed beside
    the networks are random values for constant tensors, a copy of the cut network's parameters, which are
    put back should it write to them, the
    original's weights in original sizes where it was cut before, the float64 copy of the weights of one
    operator at a time, and the float64 activations of the given inputs.

    Args:
        model: the network before the cut.
        pruned: the network after the cut.
        plan: the plan that led from one to the other.
        inputs: inputs of the shapes that the graph was traced with; the batch size may differ.
        tolerance: largest relative difference of a slice that counts as equal; 1e-8 by default.

    Returns:
        The largest relative difference, the tolerance, the verdict, and what was compared.

    Raises:
        UsageError: the networks and the plan do not belong together, the inputs do not have the shapes that
            the graph was traced with, or the original does not run on them.

    Example:
        >>> from secateur.graph.tracing import trace
        >>> from secateur.plan import plan_from
        >>> from secateur.surgery import apply_plan
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.randn(3, 4)
        >>> plan = plan_from(trace(net, x), {"0": [1, 5]})
        >>> verify(net, apply_plan(net, plan), plan, x).ok
        True
    """
    _refuse_model(model, plan)
    _refuse_pruned(pruned, plan)
    expected = Expectation.of(model, plan, inputs, tolerance)
    shared = _shared_memory(model, pruned)
    found = expected.check(pruned)
    if found.outputs == 0 and found.problem is not None:
        _refuse_inputs(model, plan, inputs)
    return replace(found, problem=found.problem or shared)


_CALL = "call verify(model, pruned, plan, inputs)"


def _refuse_pruned(pruned: nn.Module, plan: PruningPlan) -> None:
    """Refuse what cannot be the smaller network that a plan leaves."""
    _refuse_no_network(pruned, "pruned")
    missing = plan.graph.after(plan).tensors.keys() - named_tensors(pruned).keys()
    if missing:
        raise UsageError(
            f"pruned is not what the plan leaves: it has no tensor '{min(missing)}'; pass the network that "
            "apply_plan returned for this plan"
        )


def _refuse_no_network(model: object, name: str) -> None:
    if not isinstance(model, nn.Module):
        raise UsageError(f"{name} is no network but a {type(model).__name__}; {_CALL}")
    refuse_wrapped(model, name)


def _refuse_model(model: nn.Module, plan: PruningPlan) -> None:
    """Refuse a network that a plan was not made for."""
    _refuse_no_network(model, "model")
    if not hasattr(plan, "graph"):
        raise UsageError(f"plan is no pruning plan but a {type(plan).__name__}; {_CALL}")
    wrong = misfit(model, plan.graph.tensors)
    if wrong is not None and misfit(model, plan.graph.after(plan).tensors) is None:
        raise UsageError(
            f"model has been cut already ({wrong}), but the network before the cut comes first: {_CALL}. For "
            "a cut in place make the Expectation before it: expected = Expectation.of(model, plan, inputs)"
        )
    if wrong is not None:
        raise UsageError(f"model is not the network that the plan was made for: {wrong}; {_CALL}")


def _refuse_inputs(model: nn.Module, plan: PruningPlan, inputs: ExampleInputs) -> None:
    """Refuse inputs that the network before the cut does not accept."""
    random = plan.graph.wiring.evaluation.program.is_random
    try:
        run_network(model, beside(model, inputs), training=False, random=random, native=True)
    except Exception as error:
        raise UsageError(
            f"the network does not run on these inputs: {first_line(error)}; pass them as to trace"
        ) from error


def _shared_memory(model: nn.Module, pruned: nn.Module) -> str | None:
    """Find a tensor of a cut copy that lies in the memory of the original."""
    if pruned is model:
        return None
    own = {_address(tensor): name for name, tensor in named_tensors(model).items()}
    for name, tensor in named_tensors(pruned).items():
        found = own.get(_address(tensor))
        if found is not None and _address(tensor):
            return f"'{name}' shares its memory with '{found}' of the original"
    return None


def _address(tensor: Tensor) -> int:
    """Where the memory of a tensor begins; zero if it has none."""
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0


def original_sizes(graph: ChannelGraph, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Lay the tensors of a network that has been cut back into zeros of the sizes it was traced with.

    Args:
        graph: the graph of the network as it is now.
        tensors: its parameters and buffers by name.

    Returns:
        Tensors of the original shapes; those that were never cut are handed on as they are.
    """
    return {name: original_size(graph, name, tensors[name].detach()) for name in graph.wiring.shapes}


def original_size(graph: ChannelGraph, name: str, tensor: Tensor) -> Tensor:
    """Lay a tensor of a network that has been cut back into zeros of the size it was traced with.

    Args:
        graph: the graph of the network as it is now.
        name: of the parameter or buffer.
        tensor: its values.

    Returns:
        A tensor of the original shape; the same one if it was never cut.
    """
    # A row of a normalised weight that was cut still has a norm to be divided by.
    rows = {item.direction: item.dim for item in graph.wiring.rescales}
    for dim, size in enumerate(graph.wiring.shapes[name]):
        if tensor.shape[dim] != size:
            wide = list(tensor.shape)
            wide[dim] = size
            index = torch.as_tensor(graph.positions(name, dim), device=tensor.device)
            blank = tensor.new_ones(wide) if rows.get(name) == dim else tensor.new_zeros(wide)
            tensor = blank.index_copy(dim, index, tensor)
    return tensor


def _portions(forward: Pass, inputs: ExampleInputs) -> Iterator[tuple[ExampleInputs, int]]:
    """Inputs in portions of the traced batch size, each with the number of its examples that count."""
    program = forward.program
    args, kwargs = call_arguments(inputs)
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    expected = program.input_shapes
    if [tuple(leaf.shape) for leaf in leaves] == expected:
        yield inputs, -1
        return
    sizes = {leaf.shape[0] for leaf in leaves if leaf.dim() > 0}
    rest = [tuple(leaf.shape[1:]) for leaf in leaves] == [shape[1:] for shape in expected]
    if len(sizes) != 1 or not rest or not all(shape[:1] == (program.batch,) for shape in expected):
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves)
        raise UsageError(
            f"inputs of shapes {shapes} do not fit the traced ones {', '.join(map(str, expected))}; "
            "only the batch size may differ"
        )
    count = sizes.pop()
    if count == 0:
        raise UsageError("the inputs hold no example; pass at least one")
    for start in range(0, count, program.batch):
        # The last portion is filled up with its last example, which does not count.
        yield _examples(inputs, start, program.batch), min(program.batch, count - start)


def _examples(inputs: ExampleInputs, start: int, count: int) -> ExampleInputs:
    """Some examples of inputs; the last one is repeated where there are too few."""

    def picked(leaf: Tensor) -> Tensor:
        index = torch.arange(start, start + count).clamp(max=leaf.shape[0] - 1)
        return leaf.index_select(0, index.to(leaf.device)) if leaf.dim() else leaf

    args, kwargs = tree_map_only(Tensor, picked, call_arguments(inputs))
    picked_ones: ExampleInputs = args[0] if isinstance(inputs, Tensor) else kwargs or args
    return picked_ones


def _cycled(forward: Pass, inputs: ExampleInputs) -> ExampleInputs:
    """As many examples as a pass was captured with: a single one was doubled for it."""
    leaves = [leaf for leaf in tree_leaves(call_arguments(inputs)) if isinstance(leaf, Tensor)]
    same = [tuple(leaf.shape) for leaf in leaves] == forward.program.input_shapes
    return inputs if same else _examples(inputs, 0, forward.program.batch)


def _batchwise(
    forward: Pass, inputs: ExampleInputs, run: Callable[[ExampleInputs], Outputs], *, whole: bool = False
) -> Outputs:
    """Run any number of examples in portions of the traced batch size."""
    portions = list(_portions(forward, inputs))
    if whole or (len(portions) == 1 and portions[0][1] < 0):
        return run(inputs)
    results = [(run(part), count) for part, count in portions]
    first = results[0][0]
    leaves = tuple(
        torch.cat([item.leaves[number][:count] for item, count in results])
        if isinstance(leaf, Tensor)
        else leaf
        for number, leaf in enumerate(first.leaves)
    )
    return replace(first, leaves=leaves, rounded=any(item.rounded for item, _ in results))
