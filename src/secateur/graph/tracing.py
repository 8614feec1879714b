"""Trace a network: from the network and example inputs to its channel graph."""

from __future__ import annotations

import fnmatch
import gc
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch import nn

from secateur.errors import TraceError, UsageError, closest
from secateur.graph.branches import Operand, ResidualBranch, find_branches
from secateur.graph.capture.calls import ModuleCall
from secateur.graph.capture.obstacles import find_obstacle
from secateur.graph.capture.program import (
    ExampleInputs,
    Program,
    canonical_names,
    capture,
    copied_inputs,
    doubled,
    on_device_of,
)
from secateur.graph.capture.wrappers import refuse_wrapped
from secateur.graph.channel_graph import ChannelGraph
from secateur.graph.channels import find_channels
from secateur.graph.checking.call_comparison import Likeness, likeness, outputs_within
from secateur.graph.checking.modes import (
    changed_by_mode,
    derivable,
    in_training,
    modules_in_training,
    part_in_training,
)
from secateur.graph.checking.trial import examined, passing
from secateur.graph.costing import count_costs, label_vectors
from secateur.graph.cutting.tensors import named_tensors
from secateur.graph.cutting.ties import Tie, storage_ties
from secateur.graph.extents import find_extents
from secateur.graph.fused_encoders import nested_layers, pair_heads
from secateur.graph.groups import IntArray
from secateur.graph.labels import SlotTable
from secateur.graph.propagation.attention_units import (
    Attention,
    OpenAxes,
    UnitAxes,
    asked_units,
    each_unit_once,
)
from secateur.graph.propagation.axis_choices import WHOLE, other_axes
from secateur.graph.propagation.findings import Findings, Hints
from secateur.graph.propagation.propagate import Environment, propagate_all
from secateur.graph.propagation.size_source import Sizes
from secateur.graph.sizes.alignment import sizes_of
from secateur.graph.sizes.recording import Recorded, record_run
from secateur.graph.ungrouped import ungrouped
from secateur.graph.wiring import Pass, Wiring, distinct_attributes, distinct_reads

Ignore = Iterable[str | nn.Module]
"""Modules to leave alone: paths, patterns such as ``"layer4.*"``, or the modules themselves."""


@contextmanager
def _without_collection() -> Iterator[None]:
    """Collect no garbage within a block.

    A trace makes many objects that stay. They set off full collections, which take as long as several forward
    passes and free nothing.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@_without_collection()
def trace(
    model: nn.Module,
    example_inputs: ExampleInputs,
    ignore: Ignore = (),
    attention: str | Mapping[str, str] | None = None,
) -> ChannelGraph:
    """Find out which channels of a network are coupled and which may be cut.

    The network is captured, every operator's rule says which slots belong together, residual branches are
    found, and the result is checked: all groups and branches are removed on trial, and the smaller network
    must run, in evaluation and in training mode, and give the numbers of the masked original. What fails is
    frozen, with its reason. The network is left as it was.

    Args:
        model: the network, in any mode, on any device.
        example_inputs: what to call it with: a tensor, a tuple of arguments, or a mapping of
            keyword arguments, on any device. Sizes matter only as far as the network insists on them.
        ignore: modules to leave alone: none of their tensors changes its shape, which also
            freezes whatever is coupled with them, and the residual branches that they are parts of.
        attention: what is removed from attention: ``"heads"`` for whole heads, where a key/value head goes
            together with the query heads that share it; ``"query_heads"`` for the same query head of every
            key/value head; ``"head_dim"`` for the same place in every head. Either one for the whole network,
            or a mapping from modules, as paths or patterns such as ``"*.layers.0.*"``. If not given, the
            first of these that can be removed.

    Returns:
        The channel graph.

    Raises:
        TraceError: the network cannot be captured.
        UsageError: ``ignore`` or ``attention`` names no module, or the attention does not have this unit, or
            it is frozen.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> graph = trace(net, torch.randn(1, 3, 8, 8))
        >>> [(group.name, group.channels, group.reason) for group in graph.groups]
        [('0', 8, None), ('2', 4, 'is an output of the network')]
    """
    refuse_wrapped(model)
    obstacle = find_obstacle(model, example_inputs)
    if obstacle is not None:
        raise TraceError(obstacle)
    changed = changed_by_mode(model)
    if changed:
        raise TraceError(
            f"model.train() or model.eval() rewrites '{changed}' (as merged adapters do); merge permanently, "
            "or switch merging off, before tracing"
        )
    left_alone = _sharing_parts(model) | _left_alone(model, ignore)
    example_inputs = copied_inputs(on_device_of(model, example_inputs))
    programs, sizes, recorded, complete = _captured_programs(model, example_inputs)
    seen = recorded[False]
    calls = {} if seen is None else seen.modules
    branches, operands = find_branches(model, programs, calls)
    branches = tuple(_unless_left_alone(branch, left_alone) for branch in branches)
    captured = _Captured(model, programs, sizes, left_alone, complete, attention, branches, operands, calls)
    graph, assumptions = captured.wired(frozenset())
    if assumptions and not passing(model, graph, example_inputs, recorded):
        graph, _ = captured.wired(assumptions)
    graph = examined(model, graph, example_inputs, recorded)
    _refuse_frozen(graph, attention)
    return graph


def _captured_programs(
    model: nn.Module, inputs: ExampleInputs
) -> tuple[list[Program], list[Sizes], Recorded, bool]:
    """Capture the forward passes of a network from which its graph can be made.

    The evaluation-mode pass is always captured. If training does something else, or reaches parameters that
    evaluation does not, its pass is known as well: as a part of the first, or captured. Otherwise it is
    derived from the first.

    Args:
        model: the network; not changed.
        inputs: example inputs.

    Returns:
        The programs, the evaluation-mode one first; for each, where its sizes come from; what runs on shapes
        showed; and whether the programs are all that the network does.

    Raises:
        TraceError: the network cannot be captured.
    """
    program = capture(model, inputs)
    seen = record_run(model, inputs, training=False)
    two = doubled(inputs)
    # Code that expands something to a batch runs other operators for two examples.
    trained = record_run(model, inputs, training=True) or record_run(model, two, training=True)
    modes = {False: seen, True: trained}
    hidden_in = tuple(mode for mode, found in modes.items() if found is not None and found.hides)
    program = replace(program, hidden_in=hidden_in)
    sizes = sizes_of(seen, program)
    unreached = any(name not in program.tensors for name, _ in model.named_parameters())
    switched = modules_in_training(model)
    alike = Likeness.DIFFERENT if unreached else likeness(seen, trained, switched)
    if alike is Likeness.SAME or (alike is Likeness.ALIKE and derivable(model, program, inputs)):
        return [program], [sizes], {False: seen}, True
    outputs = None if unreached else outputs_within(seen, trained, switched, program)
    if trained is not None and outputs is not None:
        part = part_in_training(program, switched, outputs, trained.left_out)
        if part is not None and derivable(model, part, inputs):
            return [program, part], [sizes, sizes], {False: seen}, True
    try:
        captured = capture(model, inputs, training=True)
    except TraceError:
        if unreached:
            raise
        return [program], [sizes], {False: seen}, False
    captured = replace(captured, hidden_in=hidden_in)
    trained = trained if two is inputs else record_run(model, two, training=True)
    return [program, captured], [sizes, sizes_of(trained, captured)], {False: seen, True: trained}, True


@dataclass(frozen=True)
class _Propagated:
    """What the rules of operators found in all programs of a network.

    Attributes:
        slots: all slots, with the equalities between them.
        results: for each program, its values and what was noted besides.
    """

    slots: SlotTable
    results: Sequence[tuple[Environment, Findings]]

    def labels(self, nodes: Collection[str]) -> IntArray:
        """Collect the channels that some operators left of their rectangles."""
        left = [
            choice.labels
            for _, findings in self.results
            for choice in findings.axes.choices
            if choice.node in nodes
        ]
        return np.concatenate([*left, np.zeros(0, np.int64)])

    def free(self, labels: IntArray) -> IntArray:
        """Select those of some channels that nothing freezes."""
        components, (reasons, _) = self._resolved
        return labels[reasons[components[labels]] < 0]

    def why_frozen(self, axes: Mapping[str, int]) -> str | None:
        """Return why some operators left nothing free of a rectangle; ``None`` if all left something.

        Args:
            axes: the operators, each with the axis that it should leave free.
        """
        components, (reasons, texts) = self._resolved
        found = [self.labels([node]) for node, axis in axes.items() if axis != WHOLE]
        found = [labels for labels in found if len(labels)]  # the others hold no channels, such as constants
        frozen = next((labels for labels in found if not len(self.free(labels))), None)
        if frozen is not None:
            return texts[int(reasons[components[frozen[0]]])]
        return None if found else "it holds no channels"

    @cached_property
    def _resolved(self) -> tuple[IntArray, tuple[IntArray, list[str]]]:
        components = self.slots.components()
        return components, self.slots.reasons(components)


@dataclass(frozen=True)
class _Captured:
    """All that is known of a network before any rule is asked.

    Attributes:
        model: the network.
        programs: its captured forward passes, the evaluation-mode one first.
        sizes: for each program, where its sizes come from.
        left_alone: for each tensor that must keep its shape, the reason.
        complete: whether the programs are all that the network does.
        attention: what is removed from attention, as :func:`trace` takes it.
        branches: its residual branches.
        operands: for each program, where they are added; their slots count from zero.
        calls: the calls of its modules in evaluation mode, by path.
    """

    model: nn.Module
    programs: Sequence[Program]
    sizes: Sequence[Sizes]
    left_alone: Mapping[str, str]
    complete: bool
    attention: str | Mapping[str, str] | None
    branches: tuple[ResidualBranch, ...]
    operands: tuple[tuple[Operand, ...], ...]
    calls: Mapping[str, Sequence[ModuleCall]]

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of every parameter and buffer, by its first name."""
        return {name: tuple(item.shape) for name, item in named_tensors(self.model).items()}

    @cached_property
    def ties(self) -> tuple[Tie, ...]:
        """Return the pairs of parameters and buffers that share memory."""
        return storage_ties(named_tensors(self.model))

    def wired(self, refused: frozenset[str]) -> tuple[ChannelGraph, frozenset[str]]:
        """Propagate labels through the programs and resolve what was found.

        Args:
            refused: operators whose fixed numbers were shown not to follow the widths.

        Returns:
            The graph of the whole network, and the operators whose fixed numbers were taken to follow.
        """
        propagated, attentions = self._with_attention_units(refused)
        slots, (env, findings) = propagated.slots, propagated.results[0]
        channels = find_channels(slots, label_vectors(env, findings))
        every = [found for _, found in propagated.results]
        parameters = [name for name, _ in self.model.named_parameters()]
        first = len(channels.group_of)
        passes = [
            Pass(
                program,
                tuple(found.reads),
                tuple(found.statistics),
                operands=tuple(replace(item, slot=first + item.slot) for item in places),
            )
            for program, found, places in zip(self.programs, every, self.operands, strict=True)
        ]
        if len(passes) == 1:
            derived = in_training(passes[0], modules_in_training(self.model))
            program = replace(derived.program, complete=self.complete)
            passes.append(replace(derived, program=program))
        wiring = Wiring(
            evaluation=passes[0],
            training=passes[1],
            shapes=self.shapes,
            aliases={name: first for name, first in canonical_names(self.model).items() if name != first},
            groups=channels.groups,
            group_of=channels.group_of,
            channel_of=channels.channel_of,
            spans=slots.spans,
            distinct_reads=distinct_reads(every),
            attributes=distinct_attributes(every),
            work=tuple(findings.work),
            cost_model=count_costs(
                self.model, self.programs[0], slots, (env, findings), channels, self.branches
            ),
            extents=find_extents(env, channels),
            rescales=tuple(dict.fromkeys(item for found in every for item in found.rescales)),
            ungrouped=ungrouped(self.programs, slots, channels, parameters),
            advice={
                channels.groups[channels.group_of[slot]].name: text
                for found in every
                for slot, text in found.advice.items()
                if channels.group_of[slot] >= 0
            },
            attentions=attentions,
            branches=self.branches,
        )
        return ChannelGraph.whole(wiring), frozenset().union(*(found.assumptions for found in every))

    def _with_attention_units(self, refused: frozenset[str]) -> tuple[_Propagated, tuple[Attention, ...]]:
        """Propagate with the units of attention that were asked for, otherwise the first free one of each.

        Args:
            refused: operators whose fixed numbers were shown not to follow the widths.

        Raises:
            UsageError: a unit that was asked for is not there, or is frozen.
        """
        axes = self._attention_axes()
        asked = asked_units(self.attention, axes)
        choices = each_unit_once(axes)
        tried = {unit: self._with_units(refused, axes, choice) for unit, choice in choices.items()}
        frozen = {
            path: {unit: tried[unit].why_frozen(own[unit]) for unit in own} for path, own in axes.items()
        }
        for path, unit in asked.items():
            if frozen[path][unit] is not None:
                raise UsageError(f"attention: '{unit}' of '{path}' cannot be removed: {frozen[path][unit]}")
        free = {path: [unit for unit in own if frozen[path][unit] is None] for path, own in axes.items()}
        # Where no unit is free, the reason that freezes whole heads is the one to read.
        chosen = {path: asked.get(path, [*free[path], *own][0]) for path, own in axes.items()}
        same = [tried[unit] for unit, choice in choices.items() if choice == chosen]
        best = same[0] if same else self._with_units(refused, axes, chosen)
        return best, tuple(
            Attention(
                path,
                unit,
                tuple(other for other in free[path] if other != unit),
                best.free(best.labels(axes[path][unit])),
            )
            for path, unit in chosen.items()
        )

    def _attention_axes(self) -> UnitAxes:
        """Find the axes that each unit of attention leaves free, in a walk that leaves all of them open."""
        open_axes = OpenAxes()
        slots = self._slots({})
        modules = dict(self.model.named_modules())
        hints = [Hints(sizes=sizes, open_axes=open_axes) for sizes in self.sizes]
        propagate_all(self.programs, modules, slots, hints)
        return open_axes.axes()

    def _with_units(self, refused: frozenset[str], units: UnitAxes, choice: Mapping[str, str]) -> _Propagated:
        """Propagate until no operator objects to the axis that an earlier one left free.

        Args:
            refused: operators whose fixed numbers were shown not to follow the widths.
            units: the units of each attention.
            choice: the unit of each attention whose axes are left free whatever objections there are.
        """
        settled = {node: axis for path, unit in choice.items() for node, axis in units[path][unit].items()}
        modules, axes = dict(self.model.named_modules()), dict[str, int]()
        while True:
            slots = self._slots(self.left_alone)
            hints = [Hints(dict(axes), settled, sizes=sizes, refused=refused) for sizes in self.sizes]
            results = propagate_all(self.programs, modules, slots, hints)
            better = other_axes([findings.axes for _, findings in results])
            if not better:
                return _Propagated(slots, results)
            axes |= better

    def _slots(self, left_alone: Mapping[str, str]) -> SlotTable:
        """Number the slots of all tensors, freeze those of some, and pair heads that cannot go alone."""
        slots = SlotTable(self.shapes)
        for name, reason in left_alone.items():
            for dim in range(len(self.shapes[name])):
                slots.freeze(slots.span(name, dim), reason, final=True)
        for tie in self.ties:
            for dim, of_first in enumerate(tie.order or ()):
                slots.join(slots.span(tie.first, of_first), slots.span(tie.second, dim))
        pair_heads(self.model, nested_layers(self.model, self.calls), slots)
        return slots


def _refuse_frozen(graph: ChannelGraph, attention: str | Mapping[str, str] | None) -> None:
    """Refuse a unit of attention that was asked for and did not pass the trial cuts."""
    asked = asked_units(attention, {item.module: (item.unit, *item.others) for item in graph.attentions})
    for item in graph.attentions:
        groups = [
            graph.groups[number] for number in np.unique(graph.wiring.group_of[item.labels]) if number >= 0
        ]
        if item.module in asked and not any(group.prunable for group in groups):
            reason = groups[0].reason if groups else "it belongs to no layer"
            raise UsageError(f"attention: '{item.unit}' of '{item.module}' cannot be removed: {reason}")


def _unless_left_alone(branch: ResidualBranch, left_alone: Mapping[str, str]) -> ResidualBranch:
    """Freeze a branch with which tensors would go that the user wants left alone."""
    reason = next((left_alone[name] for name in branch.tensors if name in left_alone), None)
    return branch if reason is None else replace(branch, reason=reason)


def _sharing_parts(model: nn.Module) -> dict[str, str]:
    """Collect the tensors that share a part of their memory with others, each with the reason."""
    return {
        name: f"'{tie.second}' shares memory with '{tie.first}' and is no permutation of it"
        for tie in storage_ties(named_tensors(model))
        if tie.order is None
        for name in (tie.first, tie.second)
    }


def _left_alone(model: nn.Module, ignore: Ignore) -> dict[str, str]:
    """Collect the tensors of the modules to leave alone, each with the reason."""
    paths = dict(model.named_modules())
    names = canonical_names(model)
    chosen: list[str] = []
    for item in [ignore] if isinstance(ignore, str | nn.Module) else ignore:
        if isinstance(item, nn.Module):
            found = [path for path, module in paths.items() if module is item]
        else:
            found = [path for path in paths if path and fnmatch.fnmatchcase(path, item)]
            found += [item] if item in names else []
        if not found:
            hint = closest(str(item), [*paths, *names])
            raise UsageError(f"ignore: no module '{item}' in {type(model).__name__}{hint}")
        chosen.extend(found)
    return {
        first: f"left alone on request ('{path}')"
        for path in chosen
        for name, first in names.items()
        if not path or name == path or name.startswith(path + ".")
    }
