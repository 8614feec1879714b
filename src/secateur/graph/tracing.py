"""Tracing: from a network and example inputs to its channel graph."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from secateur.errors import UsageError
from secateur.graph.capture import ExampleInputs, Program, beside, canonical_names, capture, owned
from secateur.graph.channel_graph import ChannelGraph
from secateur.graph.costing import Costing, label_vectors
from secateur.graph.cutting import named_tensors
from secateur.graph.extents import find_extents
from secateur.graph.labels import SlotTable
from secateur.graph.notes import Hints, Notes, other_axes
from secateur.graph.prove import prove
from secateur.graph.sizes import Sizes
from secateur.graph.walk import Environment, walk
from secateur.graph.watching import watch_sizes
from secateur.graph.wiring import Wiring, distinct_attributes, distinct_reads, find_channels

Ignore = Iterable[str | nn.Module]
"""Modules to leave alone: paths, patterns such as ``"layer4.*"``, or the modules themselves."""


def trace(model: nn.Module, example_inputs: ExampleInputs, ignore: Ignore = ()) -> ChannelGraph:
    """Works out which channels of a network hang together and which may be cut.

    The network is captured, every operator's rule says which slots belong together, and the
    result is proved: all groups are cut on trial in a copy, which must run, in evaluation and in
    training mode, and give the numbers of the masked original. What fails is frozen, with its reason.
    The network itself is left exactly as it was.

    Args:
        model: the network, in any mode, on any device.
        example_inputs: what to call it with: a tensor, a tuple of arguments, or a mapping of
            keyword arguments, on any device. Sizes matter only as far as the network insists on them.
        ignore: modules to leave alone: none of their tensors changes its shape, which also
            freezes whatever is coupled with them.

    Returns:
        The channel graph.

    Raises:
        TraceError: the network cannot be captured.
        UsageError: ``ignore`` names no module.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> graph = trace(net, torch.zeros(1, 3, 8, 8))
        >>> [(group.name, group.channels, group.reason) for group in graph.groups]
        [('0', 8, None), ('2', 4, 'is an output of the network')]
    """
    left_alone = _left_alone(model, ignore)
    example_inputs = owned(beside(model, example_inputs))
    programs = [capture(model, example_inputs)]
    reached = programs[0].tensors
    if any(name not in reached for name, _ in model.named_parameters()):
        programs.append(capture(model, example_inputs, training=True))
    sizes = [watch_sizes(model, example_inputs, program) for program in programs]
    captured = _Captured(model, programs, sizes, left_alone)
    graph, proposals = captured.wired({}, frozenset())
    failures = prove(model, graph, example_inputs, apart=not proposals)
    if failures and proposals:
        graph, _ = captured.wired({}, proposals)
        failures = prove(model, graph, example_inputs)
    found = dict(failures)
    while failures:
        graph, _ = captured.wired(found, proposals)
        failures = prove(model, graph, example_inputs)
        found |= failures
    return graph


@dataclass(frozen=True)
class _Captured:
    """All that is known of a network before any rule is asked.

    Attributes:
        model: the network.
        programs: its captured forward passes, the evaluation-mode one first.
        sizes: for each program, where its sizes come from.
        left_alone: for each tensor that must keep its shape, the reason.
    """

    model: nn.Module
    programs: Sequence[Program]
    sizes: Sequence[Sizes]
    left_alone: Mapping[str, str]

    def wired(
        self, failures: Mapping[str, str], refused: frozenset[str]
    ) -> tuple[ChannelGraph, frozenset[str]]:
        """Walks the programs and resolves what was found.

        Args:
            failures: for each producing tensor whose channels could not be proved, the reason.
            refused: operators whose fixed numbers were shown not to follow the widths.

        Returns:
            The graph of the whole network, and the operators whose fixed numbers were taken to follow.
        """
        tensors = named_tensors(self.model)
        slots, walked = self._walked(
            {name: tuple(item.shape) for name, item in tensors.items()}, failures, refused
        )
        env, notes = walked[0]
        channels = find_channels(slots, label_vectors(env, notes))
        costing = Costing(channels)
        parameters = frozenset(name for name, _ in self.model.named_parameters())
        costing.tensors(slots, parameters, {name: item.element_size() for name, item in tensors.items()})
        costing.work(notes, self.programs[0].batch)
        costing.activations(self.programs[0], env)
        every = [found for _, found in walked]
        widths = np.array([group.channels for group in channels.groups], dtype=np.int64)
        wiring = Wiring(
            program=self.programs[0],
            shapes={name: tuple(item.shape) for name, item in tensors.items()},
            aliases={name: first for name, first in canonical_names(self.model).items() if name != first},
            groups=channels.groups,
            group_of=channels.group_of,
            channel_of=channels.channel_of,
            spans=slots.spans,
            reads=tuple(notes.reads),
            places=distinct_reads(every),
            statistics=tuple(notes.statistics),
            attributes=distinct_attributes(every),
            cost_model=costing.build(),
            extents=find_extents(env, channels.group_of, widths),
        )
        return ChannelGraph.whole(wiring), frozenset().union(*(note.proposals for note in every))

    def _walked(
        self, shapes: Mapping[str, tuple[int, ...]], failures: Mapping[str, str], refused: frozenset[str]
    ) -> tuple[SlotTable, list[tuple[Environment, Notes]]]:
        """Walks until no operator objects to the axis that an earlier one left free."""
        modules = dict(self.model.named_modules())
        axes: dict[str, int] = {}
        while True:
            slots = _frozen_slots(shapes, self.left_alone, failures)
            walked = [
                walk(program, modules, slots, Hints(axes, sizes, refused))
                for program, sizes in zip(self.programs, self.sizes, strict=True)
            ]
            better = other_axes([notes for _, notes in walked], axes)
            if not better:
                return slots, walked
            axes |= better


def _frozen_slots(
    shapes: Mapping[str, tuple[int, ...]], left_alone: Mapping[str, str], failures: Mapping[str, str]
) -> SlotTable:
    """The slots of all tensors, with those frozen that must stay whatever the walk finds."""
    slots = SlotTable(shapes)
    for name, reason in left_alone.items():
        for dim in range(len(shapes[name])):
            slots.freeze(slots.span(name, dim), reason)
    for name, reason in failures.items():
        slots.freeze(slots.span(name, 0), reason)
    return slots


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
            close = difflib.get_close_matches(str(item), [*paths, *names], n=3)
            hint = f"; did you mean {', '.join(map(repr, close))}?" if close else ""
            raise UsageError(f"ignore: no module '{item}' in {type(model).__name__}{hint}")
        chosen.extend(found)
    return {
        first: f"left alone on request ('{path}')"
        for path in chosen
        for name, first in names.items()
        if not path or name == path or name.startswith(path + ".")
    }
