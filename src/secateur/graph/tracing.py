"""Tracing: from a network and example inputs to its channel graph."""

from __future__ import annotations

import fnmatch
import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from secateur.errors import TraceError, UsageError, closest
from secateur.graph.branches import Operand, ResidualBranch, find_branches
from secateur.graph.capture.obstacles import find_obstacle
from secateur.graph.capture.program import (
    ExampleInputs,
    Program,
    beside,
    canonical_names,
    capture,
    doubled,
    module_path,
    owned,
)
from secateur.graph.capture.wrappers import refuse_wrapped
from secateur.graph.channel_graph import ChannelGraph
from secateur.graph.checking.modes import changed_by_mode, derivable, in_training, modules_in_training
from secateur.graph.checking.trial import examined, passing
from secateur.graph.costing import Costing, label_vectors
from secateur.graph.cutting.tensors import named_tensors
from secateur.graph.labels import SlotTable
from secateur.graph.propagation.findings import Findings, Hints, axes_beside_shared, other_axes
from secateur.graph.propagation.propagate import Environment, propagate
from secateur.graph.sizes.extents import find_extents
from secateur.graph.sizes.source import Sizes
from secateur.graph.sizes.tracing import Likeness, likeness, observe, sizes_of
from secateur.graph.ungrouped import ungrouped
from secateur.graph.wiring import Pass, Wiring, distinct_attributes, distinct_reads, find_channels

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
def trace(model: nn.Module, example_inputs: ExampleInputs, ignore: Ignore = ()) -> ChannelGraph:
    """Find out which channels of a network belong together, and what may be removed.

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

    Returns:
        The channel graph.

    Raises:
        TraceError: the network cannot be captured.
        UsageError: ``ignore`` names no module.

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
            f"'{changed}' gets other values when the network changes between training and evaluation mode; "
            "merge such weights for good, or switch that off, before tracing"
        )
    left_alone = _left_alone(model, ignore)
    example_inputs = owned(beside(model, example_inputs))
    programs = [capture(model, example_inputs)]
    seen = observe(model, example_inputs, training=False)
    reached = programs[0].tensors
    two = doubled(example_inputs)
    # Code that expands something to a batch runs other operators for two examples.
    trained = observe(model, example_inputs, training=True) or observe(model, two, training=True)
    alike = likeness(seen, trained, modules_in_training(model))
    unreached, complete = any(name not in reached for name, _ in model.named_parameters()), True
    if unreached or (
        alike is Likeness.DIFFERENT
        or (alike is Likeness.ALIKE and not derivable(model, programs[0], example_inputs))
    ):
        try:
            programs.append(capture(model, example_inputs, training=True))
            trained = trained if two is example_inputs else observe(model, two, training=True)
        except TraceError:
            if unreached:
                raise
            complete = False
    sizes = [sizes_of(found, program) for found, program in zip([seen, trained], programs, strict=False)]
    branches, operands = find_branches(model, programs, {} if seen is None else seen.modules)
    branches = tuple(_unless_left_alone(branch, left_alone) for branch in branches)
    captured = _Captured(model, programs, sizes, left_alone, complete, branches, operands)
    graph, assumptions = captured.wired(frozenset())
    if assumptions and not passing(model, graph, example_inputs):
        graph, _ = captured.wired(assumptions)
    return examined(model, graph, example_inputs)


@dataclass(frozen=True)
class _Captured:
    """All that is known of a network before any rule is asked.

    Attributes:
        model: the network.
        programs: its captured forward passes, the evaluation-mode one first.
        sizes: for each program, where its sizes come from.
        left_alone: for each tensor that must keep its shape, the reason.
        complete: whether the programs are all that the network does.
        branches: its residual branches.
        operands: for each program, where they are added; their slots count from zero.
    """

    model: nn.Module
    programs: Sequence[Program]
    sizes: Sequence[Sizes]
    left_alone: Mapping[str, str]
    complete: bool
    branches: tuple[ResidualBranch, ...]
    operands: tuple[tuple[Operand, ...], ...]

    def wired(self, refused: frozenset[str]) -> tuple[ChannelGraph, frozenset[str]]:
        """Walk the programs and resolves what was found.

        Args:
            refused: operators whose fixed numbers were shown not to follow the widths.

        Returns:
            The graph of the whole network, and the operators whose fixed numbers were taken to follow.
        """
        tensors = named_tensors(self.model)
        slots, walked = self._walked({name: tuple(item.shape) for name, item in tensors.items()}, refused)
        env, findings = walked[0]
        channels = find_channels(slots, label_vectors(env, findings))
        costing = Costing(channels, self.branches)
        parameters = frozenset(name for name, _ in self.model.named_parameters())
        costing.tensors(slots, parameters, {name: item.element_size() for name, item in tensors.items()})
        costing.add_macs(findings, self.programs[0].batch)
        costing.activations(self.programs[0], env)
        every = [found for _, found in walked]
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
        widths = np.array([group.channels for group in channels.groups], dtype=np.int64)
        wiring = Wiring(
            evaluation=passes[0],
            training=passes[1],
            shapes={name: tuple(item.shape) for name, item in tensors.items()},
            aliases={name: first for name, first in canonical_names(self.model).items() if name != first},
            groups=channels.groups,
            group_of=channels.group_of,
            channel_of=channels.channel_of,
            spans=slots.spans,
            places=distinct_reads(every),
            attributes=distinct_attributes(every),
            work=tuple(findings.work),
            cost_model=costing.build(),
            extents=find_extents(env, channels.group_of, widths),
            rescales=tuple(dict.fromkeys(item for note in every for item in note.rescales)),
            ungrouped=ungrouped(self.programs, slots, channels, parameters),
            branches=self.branches,
        )
        return ChannelGraph.whole(wiring), frozenset().union(*(note.assumptions for note in every))

    def _walked(
        self, shapes: Mapping[str, tuple[int, ...]], refused: frozenset[str]
    ) -> tuple[SlotTable, list[tuple[Environment, Findings]]]:
        """Walk with those axes of rectangles left free that leave most channels free in the whole network."""
        axes: dict[str, int] = {}
        first = self._agreed(shapes, refused, axes)
        others = self._others_of_shared(*first, axes)
        if not others:
            return first
        return max(
            first, self._agreed(shapes, refused, axes | others), key=lambda found: found[0].count_free()
        )

    def _agreed(
        self, shapes: Mapping[str, tuple[int, ...]], refused: frozenset[str], axes: dict[str, int]
    ) -> tuple[SlotTable, list[tuple[Environment, Findings]]]:
        """Walk until no operator objects to the axis that an earlier one left free.

        Args:
            shapes: of all tensors.
            refused: operators whose fixed numbers were shown not to follow the widths.
            axes: the axes to leave free, by operator; those that objections lead to are added.
        """
        modules = dict(self.model.named_modules())
        while True:
            slots = _frozen_slots(shapes, self.left_alone)
            walked = [
                propagate(program, modules, slots, Hints(dict(axes), sizes, refused))
                for program, sizes in zip(self.programs, self.sizes, strict=True)
            ]
            better = other_axes([findings for _, findings in walked], axes)
            if not better:
                return slots, walked
            axes |= better

    def _others_of_shared(
        self, slots: SlotTable, walked: list[tuple[Environment, Findings]], asked: Mapping[str, int]
    ) -> dict[str, int]:
        """Other axes for the rectangles whose free channels several modules share, unless asked for before.

        Rotary embeddings couple the widths of the heads of all layers. Whole heads may then be more.
        """
        modules = {node.name: module_path(node) for env, _ in walked for node in env}
        choices = [choice for _, findings in walked for choice in findings.choices]
        axes = axes_beside_shared(choices, slots.components(), modules)
        return {node: axis for node, axis in axes.items() if node not in asked}


def _frozen_slots(shapes: Mapping[str, tuple[int, ...]], left_alone: Mapping[str, str]) -> SlotTable:
    """The slots of all tensors, with those frozen that the user wants left alone."""
    slots = SlotTable(shapes)
    for name, reason in left_alone.items():
        for dim in range(len(shapes[name])):
            slots.freeze(slots.span(name, dim), reason)
    return slots


def _unless_left_alone(branch: ResidualBranch, left_alone: Mapping[str, str]) -> ResidualBranch:
    """Freeze a branch with which tensors would go that the user wants left alone."""
    reason = next((left_alone[name] for name in branch.tensors if name in left_alone), None)
    return branch if reason is None else replace(branch, reason=reason)


def _left_alone(model: nn.Module, ignore: Ignore) -> dict[str, str]:
    """For each tensor of the modules to leave alone, the reason."""
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
