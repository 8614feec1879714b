"""Tracing: from a network and example inputs to its channel graph."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping

from torch import nn

from secateur.errors import UsageError
from secateur.graph.capture import ExampleInputs, Program, canonical_names, capture
from secateur.graph.channel_graph import ChannelGraph
from secateur.graph.costing import Costing, label_vectors
from secateur.graph.cutting import named_tensors
from secateur.graph.labels import SlotTable
from secateur.graph.prove import prove
from secateur.graph.walk import walk
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
            keyword arguments. Sizes matter only as far as the network insists on them.
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
    programs = [capture(model, example_inputs)]
    reached = programs[0].tensors
    if any(name not in reached for name, _ in model.named_parameters()):
        programs.append(capture(model, example_inputs, training=True))
    graph = ChannelGraph.whole(_wire(model, programs, left_alone, {}))
    failures = prove(model, graph, example_inputs)
    if failures:
        graph = ChannelGraph.whole(_wire(model, programs, left_alone, failures))
    return graph


def _wire(
    model: nn.Module, programs: list[Program], left_alone: Mapping[str, str], failures: Mapping[str, str]
) -> Wiring:
    """Walks the programs and resolves what was found.

    Args:
        model: the network.
        programs: its captured forward passes, the evaluation-mode one first.
        left_alone: for each tensor that must keep its shape, the reason.
        failures: for each producing tensor whose channels could not be proved, the reason.

    Returns:
        The wiring.
    """
    tensors = named_tensors(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    slots = SlotTable(shapes)
    for name, reason in left_alone.items():
        for dim in range(len(shapes[name])):
            slots.freeze(slots.span(name, dim), reason)
    for name, reason in failures.items():
        slots.freeze(slots.span(name, 0), reason)
    modules = dict(model.named_modules())
    walked = [walk(program, modules, slots, {}) for program in programs]
    env, notes = walked[0]
    channels = find_channels(slots, label_vectors(env, notes))
    costing = Costing(channels)
    parameters = frozenset(name for name, _ in model.named_parameters())
    costing.tensors(slots, parameters, {name: item.element_size() for name, item in tensors.items()})
    costing.work(notes, programs[0].batch)
    costing.activations(programs[0], env)
    return Wiring(
        program=programs[0],
        shapes=shapes,
        aliases={name: first for name, first in canonical_names(model).items() if name != first},
        groups=channels.groups,
        group_of=channels.group_of,
        channel_of=channels.channel_of,
        spans=slots.spans,
        reads=tuple(notes.reads),
        places=distinct_reads([found for _, found in walked]),
        statistics=tuple(notes.statistics),
        attributes=distinct_attributes([found for _, found in walked]),
        cost_model=costing.build(),
    )


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
