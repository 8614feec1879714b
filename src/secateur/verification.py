"""Verify a cut: the smaller network must compute what the masked original computes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from secateur._compat import tree_leaves, tree_map_only
from secateur.errors import VerificationError
from secateur.graph.attributes import attribute_of
from secateur.graph.capture import ExampleInputs, beside, call_arguments
from secateur.graph.channel_graph import AttributeValue, ChannelGraph
from secateur.graph.compare import TOLERANCE, Outputs, constant_parts, same_parts
from secateur.graph.cutting import named_tensors
from secateur.graph.draws import jittered, random_inputs
from secateur.graph.execution import Judgement, judge, moved, run_network, run_reference, written_buffers
from secateur.graph.notes import Rescale
from secateur.graph.trial import first_line
from secateur.graph.ungrouped import UNUSED
from secateur.graph.wiring import Pass
from secateur.graph.wrappers import refuse_wrapped

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
        outputs: number of output values that were compared.
        channels_removed: number of channels that the cut removed.
        inputs: number of inputs that were tried: the user's, and random ones of the same shapes.
        modes: modes of the network that were compared.
        precision: what both sides computed in.
        not_checked: what could not be compared, each with the reason.
        problem: what makes the outputs incomparable (another shape, another key), if anything.

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
class _Case:
    """One run of the masked original.

    Attributes:
        forward: the pass that was run.
        inputs: what it was run with.
        expected: what it returned.
        native: whether it ran in the dtype of the weights, because it does not run in float64.
    """

    forward: Pass = field(repr=False)
    inputs: ExampleInputs = field(repr=False)
    expected: Outputs = field(repr=False)
    native: bool

    def is_beside(self, other: _Case) -> bool:
        """Whether it is another run of the same pass."""
        return self is not other and self.forward is other.forward


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
    _parameters: frozenset[str] = field(repr=False)
    _attributes: tuple[AttributeValue, ...] = field(repr=False)
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
            VerificationError: the inputs do not have the shapes that the graph was traced with, or the
                network does not run on them.
        """
        graph, inputs = plan.graph, beside(model, inputs)
        after = graph.after(plan)
        tensors = original_sizes(graph, named_tensors(model))
        runs = _Reference(graph, after, tensors)
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
            frozenset(name for name, _ in model.named_parameters()),
            graph.attributes_after(plan),
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
        worst = Judgement(0.0, self.tolerance)
        not_checked = list(self._unrun)
        compared: list[_Case] = []
        noisy: set[tuple[bool, str]] = set()
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
            noisy.update((training, path) for path in judged.noisy)
            if judged.times > worst.times or (judged.error > worst.error and worst.times <= 1):
                worst = judged
            if judged.problem is not None:
                break
        return self._outcome(worst, compared, noisy, not_checked)

    def _different_parts(self, pruned: nn.Module) -> str | None:
        """Compare shapes, kinds and attributes; kernels may read beyond a tensor that is too small."""
        tensors, parameters = named_tensors(pruned), dict(pruned.named_parameters())
        for name, shape in self._after.tensors.items():
            found = tensors.get(name)
            if found is None or tuple(found.shape) != shape:
                what = "missing" if found is None else f"of shape {tuple(found.shape)}"
                return f"'{name}' is {what} instead of {shape}"
            if name in self._parameters and name not in parameters:
                return f"'{name}' is no parameter"
        for item in self._attributes:
            value = attribute_of(pruned.get_submodule(item.module), item.name)
            value = value if item.index is None else value[item.index]
            if value != item.value:
                return f"'{item.module}.{item.name}' is {value} instead of {item.value}"
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
                self._tensors,
                case.inputs,
                native=True,
                watched=self._after if case.forward.program.training else None,
            )
            case = replace(case, expected=expected, native=True)
            return case, self._run(pruned, case)

    def _run(self, pruned: nn.Module, case: _Case) -> Outputs:
        training, random = case.forward.program.training, case.forward.program.is_random
        watched = written_buffers(case.forward) if training else ()
        if case.native:
            return run_network(
                pruned, case.inputs, training=training, random=random, native=True, watched=watched
            )
        return _batchwise(
            case.forward,
            case.inputs,
            lambda part: run_network(pruned, part, training=training, random=random, watched=watched),
            whole=not training,
        )

    def _noise(self, case: _Case, rounded: bool) -> Outputs:
        cut = tuple(item for item in self._graph.wiring.rescales if self._is_cut(item))
        if _versions(self._tensors) != self._versions:
            return case.expected  # the weights are others by now, so their noise tells nothing
        tensors, inputs = moved(self._tensors, case.inputs, coarse=rounded, native=case.native, rescales=cut)

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
        noisy: set[tuple[bool, str]],
        not_checked: list[str],
    ) -> Verification:
        counted, constant = 0, set[str]()
        for training in (False, True):
            mine = [case for case in compared if case.forward.program.training is training]
            if mine:
                same = constant_parts([case.expected for case in mine])
                if len(mine) == 1 and training:  # one run tells nothing by itself
                    same = [
                        path
                        for path in same_parts(compared[0].expected, mine[0].expected)
                        if path in constant
                    ]
                constant = set(same) if not training else constant & set(same)
                unseen = {*same, *(path for mode, path in noisy if mode is training)}
                counted += sum(_varying(case.expected, unseen) for case in mine)
        not_checked += [f"{path} (does not depend on the inputs)" for path in sorted(constant)]
        buffers = [path for _, path in noisy if "(buffer '" in path]
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
            inputs=sum(1 for case in compared if not case.forward.program.training),
            modes=tuple("training" if training else "evaluation" for training in modes),
            precision="float64" if not native else "float64 and the model's own precision",
            not_checked=tuple(dict.fromkeys(not_checked)),
            problem=worst.problem,
        )


def _versions(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    return tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors.values())


def _varying(outputs: Outputs, constant: Collection[str]) -> int:
    """How many output values belong to parts that depend on the inputs."""
    return sum(
        leaf.numel()
        for path, leaf in zip(outputs.paths, outputs.leaves, strict=True)
        if isinstance(leaf, Tensor) and f"output{path}" not in constant
    )


class _Reference:
    """The masked original, to be run on several inputs."""

    def __init__(self, graph: ChannelGraph, after: ChannelGraph, tensors: Mapping[str, Tensor]) -> None:
        self._graph = graph
        self._after = after
        self._tensors = tensors

    def cases(self, inputs: ExampleInputs) -> tuple[tuple[_Case, ...], tuple[str, ...]]:
        """Run all cases, and say what could not be run."""
        evaluation, training = self._graph.wiring.evaluation, self._graph.wiring.training
        try:
            cases = [self._case(evaluation, inputs)]
        except VerificationError:
            raise
        except Exception as error:
            raise VerificationError(
                f"the network does not run on these inputs: {first_line(error)}"
            ) from error
        portion = next(iter(_portions(evaluation, inputs)))[0]
        for seed in range(1, self._draws() + 1):
            found = self._first(
                evaluation, [random_inputs(evaluation.program, portion, seed), jittered(portion, seed)]
            )
            cases += [] if found is None else [found]
        unrun = [] if len(cases) > 1 else ["random inputs (the network does not run on them)"]
        if not training.program.complete:
            return tuple(cases), (*unrun, "training mode (it could not be captured)")
        part = portion if training.program.derived else _cycled(training, portion)
        found = self._first(training, [random_inputs(training.program, part, 0), part])
        if found is None:
            unrun.append("training mode (the network does not run in it)")
        else:
            cases.append(found)
        unread = [name for name, reason in self._graph.wiring.ungrouped.items() if reason == UNUSED]
        if unread:
            more = f" and {len(unread) - 3} more" if len(unread) > 3 else ""
            names = ", ".join(f"'{name}'" for name in unread[:3])
            unrun.append(f"what uses {names}{more} (no captured pass does)")
        return tuple(cases), tuple(unrun)

    def _draws(self) -> int:
        """More draws where a pass is cheap and has few examples: a unit may be silent on all of them."""
        batch = max(1, self._graph.wiring.program.batch)
        cheap = self._graph.cost().macs * batch <= _CHEAP
        return max(_DRAWS, -(-_EXAMPLES // batch)) if cheap else _DRAWS

    def _first(self, forward: Pass, choices: Sequence[ExampleInputs]) -> _Case | None:
        """The first of several inputs that the network accepts."""
        for inputs in choices:
            try:
                return self._case(forward, inputs)
            except Exception:  # noqa: BLE001 - operators may refuse values in any way
                continue
        return None

    def _case(self, forward: Pass, inputs: ExampleInputs) -> _Case:
        removed, tensors = self._after.removed, self._tensors
        watched = self._after if forward.program.training else None

        def run(part: ExampleInputs) -> Outputs:
            return run_reference(forward, removed, tensors, part, watched=watched)

        try:
            return _Case(forward, inputs, _batchwise(forward, inputs, run), native=False)
        except (RuntimeError, NotImplementedError, TypeError):
            outputs = run_reference(forward, removed, tensors, inputs, native=True, watched=watched)
            return _Case(forward, inputs, outputs, native=True)


def verify(
    model: nn.Module,
    pruned: nn.Module,
    plan: PruningPlan,
    inputs: ExampleInputs,
    tolerance: float | None = None,
) -> Verification:
    """Compare a cut network with the original in which the removed channels are held at zero.

    Every operator of the original that contracts over channels sees zeros in place of the removed ones;
    normalisation over channels takes its statistics from the kept ones. Both sides compute in float64,
    whatever the dtype of the model, on the given inputs and on random draws of the same shapes (two; more
    where a pass is cheap and has few examples), in evaluation and in training mode, there with the buffers
    that the pass writes to. Dropout keeps everything on both sides, and other random numbers are the
    same. Every slice of every output is judged on its own scale. Other values than tensors, and the keys of
    dictionaries, must be equal. An output that does not depend on the inputs counts as not checked.

    Nothing is changed: no attribute, parameter, buffer, hook, mode or random state. What is needed beside
    the networks are a copy of the cut network's parameters, which are put back should it write to them, the
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
        VerificationError: the inputs do not have the shapes that the graph was traced with.

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
    refuse_wrapped(model)
    refuse_wrapped(pruned, "pruned")
    return Expectation.of(model, plan, inputs, tolerance).check(pruned)


def original_sizes(graph: ChannelGraph, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Lay the tensors of a network that has been cut back into zeros of the sizes it was traced with.

    Args:
        graph: the graph of the network as it is now.
        tensors: its parameters and buffers by name.

    Returns:
        Tensors of the original shapes; those that were never cut are handed on as they are.
    """
    laid_back = {}
    # A row of a normalised weight that was cut still has a norm to be divided by.
    rows = {item.direction: item.dim for item in graph.wiring.rescales}
    for name, shape in graph.wiring.shapes.items():
        data = tensors[name].detach()
        for dim, size in enumerate(shape):
            if data.shape[dim] != size:
                wide = list(data.shape)
                wide[dim] = size
                index = torch.as_tensor(graph.positions(name, dim), device=data.device)
                blank = data.new_ones(wide) if rows.get(name) == dim else data.new_zeros(wide)
                data = blank.index_copy(dim, index, data)
        laid_back[name] = data
    return laid_back


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
        raise VerificationError(
            f"inputs of shapes {shapes} do not fit the traced ones {', '.join(map(str, expected))}; "
            "only the batch size may differ"
        )
    count = sizes.pop()
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
    return Outputs(leaves, first.paths, any(item.rounded for item, _ in results))
