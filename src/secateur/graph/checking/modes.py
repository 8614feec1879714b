"""Derive the training-mode pass from the evaluation-mode pass, where it runs no other operators."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import numpy as np
from torch import nn
from torch.fx import Graph, GraphModule, Node

from secateur._compat import lazy_graph_modules
from secateur.graph.capture.nodes import module_path, named_arguments
from secateur.graph.capture.program import ExampleInputs, Program, mode_of, written_arguments
from secateur.graph.checking.compare import TOLERANCE
from secateur.graph.checking.execution import judge, run_network, run_reference
from secateur.graph.checking.probe import random_for_constant
from secateur.graph.cutting.substitute import substituted
from secateur.graph.cutting.tensors import named_tensors
from secateur.graph.wiring import Pass
from secateur.untouched import untouched

_ROUNDED = 1e-2
"""Relative difference of two training-mode passes with the same operators, where they round to float32."""

_FLAGS = {"training", "train", "use_input_stats"}
"""Arguments of operators that say whether the network is in training mode."""


def modules_in_training(model: nn.Module) -> frozenset[str]:
    """Find the modules that ``model.train()`` puts in training mode; some keep a part of them out of it."""
    with mode_of(model, training=True):
        return frozenset(path for path, module in model.named_modules() if module.training)


def changed_by_mode(model: nn.Module) -> str | None:
    """Find a parameter that ``train()`` or ``eval()`` of the network writes to, as merged adapters do.

    Args:
        model: the network; left as it was.

    Returns:
        Name of the first such parameter, if there is one.
    """
    if all(type(module).train is nn.Module.train for module in model.modules()):
        return None  # nothing but flags changes
    with untouched(model) as notes:
        for training in (True, False):
            model.train(training)
    written = {id(tensor) for tensor in notes.written}
    return next((name for name, item in model.named_parameters() if id(item) in written), None)


def in_training(forward: Pass, paths: Collection[str]) -> Pass:
    """Make a pass with dropout and batch normalisation as they are in training mode.

    Args:
        forward: the evaluation-mode pass.
        paths: the modules that are in training mode.

    Returns:
        The training-mode pass, with the same operators by the same names.
    """
    flags = {node.name: place for node, place in _switched(forward.program.graph, paths)}
    return replace(forward, program=replace(forward.program, training=True, derived=True), flags=flags)


def part_in_training(
    program: Program, paths: Collection[str], outputs: Mapping[str, str], left_out: Mapping[str, str]
) -> Program | None:
    """Make the training-mode program of a network that runs a part of the operators in training.

    Args:
        program: the evaluation-mode program; not changed.
        paths: the modules that are in training mode.
        outputs: for each output in training, where it is in what the network returns, and the operator that
            computes it.
        left_out: what the network returns beside the outputs, as a program has it.

    Returns:
        The program, whose operators have the names that they have in the other one; ``None`` if another
        operator writes to a tensor, which training may do as well.
    """
    graph, copies = Graph(), dict[Node, Node]()
    graph.graph_copy(program.graph, copies)
    if any(node.name != copy.name for node, copy in copies.items()):
        return None
    named = {copy.name: copy for copy in copies.values()}
    graph.output(tuple(named[name] for name in outputs.values()))
    for node in reversed(graph.nodes):
        if node.op in ("call_function", "get_attr") and not node.users:
            if any(True for _ in written_arguments(node)):
                return None
            graph.erase_node(node)
    for node, place in _switched(graph, paths):
        if place < len(node.args):
            node.update_arg(place, True)
        else:
            node.update_kwarg(list(named_arguments(node))[place], True)
    with lazy_graph_modules(True):  # its code is never run
        module = GraphModule(program.module, graph)
    return replace(
        program, module=module, training=True, is_part=True, outputs=tuple(outputs), left_out=left_out
    )


def _switched(graph: Graph, paths: Collection[str]) -> Iterator[tuple[Node, int]]:
    """List the operators that training switches on, each with the place of the argument that says so.

    Args:
        graph: of an evaluation-mode program.
        paths: the modules that are in training mode.
    """
    for node in graph.nodes:
        if module_path(node) not in paths:
            continue
        for place, (name, value) in enumerate(named_arguments(node).items()):
            if name in _FLAGS and value is False:
                yield node, place


def derivable(model: nn.Module, program: Program, inputs: ExampleInputs) -> bool:
    """Return whether the training-mode pass that is made from the evaluation-mode one gives right numbers.

    Random values take the place of constant tensors, which may hide a branch.

    Args:
        model: the network; not changed.
        program: the evaluation-mode program, or the part of it that training runs.
        inputs: what it was captured with.
    """
    forward = Pass(program, (), ())
    if not program.training:
        forward = in_training(forward, modules_in_training(model))
    tensors = named_tensors(model)
    drawn = random_for_constant(tensors)
    try:
        with substituted(model, drawn):
            found = run_network(model, inputs, training=True, random=True)
        expected = run_reference(forward, np.zeros(0, dtype=np.bool_), {**tensors, **drawn}, inputs)
    except Exception:  # noqa: BLE001 - the user's code may fail in any way
        return False
    # A branch that is dropped at random may hardly count beside the others.
    tolerance = _ROUNDED if found.rounded or expected.rounded else TOLERANCE
    return judge(expected, found, lambda _: expected, tolerance).ok
