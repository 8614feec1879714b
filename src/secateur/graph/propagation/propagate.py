"""Propagate labels through a program: every operator in order, each by its rule."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.fx import Node

from secateur.errors import TraceError
from secateur.graph.capture.nodes import module_path, operator_place
from secateur.graph.capture.program import Origin, Program, written_arguments
from secateur.graph.labels import SlotTable, Value
from secateur.graph.propagation.axis_choices import AxisChoices
from secateur.graph.propagation.channel_indices import with_channel_indices
from secateur.graph.propagation.constraints import resolve_sizes
from secateur.graph.propagation.findings import Findings, Hints
from secateur.graph.propagation.module_inputs import at_input
from secateur.graph.propagation.multihead import tie_multihead
from secateur.graph.propagation.rule_context import RuleContext
from secateur.graph.propagation.weights import distance_sums, weight_operators
from secateur.graph.rules import find_rule

Environment = dict[Node, Any]
"""What is known of each node's result: a value, a list of values, or nothing (``None``)."""


_IS_OUTPUT = "is an output of the network"

_INDICES_USED = "ranked by value, and the places found are used as numbers"
"""Why channels are frozen whose indices an operator found and something else than a pick uses."""


def propagate(
    program: Program,
    modules: Mapping[str, nn.Module],
    slots: SlotTable,
    hints: Hints,
) -> tuple[Environment, Findings]:
    """Give every value of a program its labels and collect what the rules say.

    Args:
        program: the captured forward pass.
        modules: the modules of the network by path.
        slots: the table that collects equalities; shared by several programs of one network.
        hints: axes to leave free, and where sizes come from.

    Returns:
        The value of every node, and what was noted on the way.
    """
    env: Environment = {}
    findings = Findings(
        comparisons=hints.sizes.get("", ()),  # type: ignore[arg-type]
        axes=AxisChoices(hints.axes, hints.settled),
    )
    constants = {
        name: program.constants[item.name]
        for name, item in program.placeholders.items()
        if item.origin is Origin.CONSTANT
    }
    known = replace(
        hints,
        weights=weight_operators(program),
        distances=distance_sums(program),
        tensors=program.tensor_names,
        unread=_unread(program),
        constants=constants,
    )
    for node in program.graph.nodes:
        if node.op == "placeholder":
            name = program.tensor_names.get(node.name)
            env[node] = _plain(node) if name is None else slots.tensor(name)
        elif node.op == "output":
            _freeze_values(env, node, slots, _IS_OUTPUT, final=True)
        elif node.op == "call_function":
            env[node] = _call(node, env, slots, findings, modules, known)
        else:
            env[node] = None
    if hints.open_axes is not None:
        return env, findings
    tie_multihead(modules, slots, findings)
    resolve_sizes(findings, slots, env)
    findings.reads = [
        replace(read, at_input=enters)
        for read, enters in zip(findings.reads, at_input(program, env, findings.reads), strict=True)
    ]
    return env, findings


def propagate_all(
    programs: Sequence[Program],
    modules: Mapping[str, nn.Module],
    slots: SlotTable,
    hints: Sequence[Hints],
) -> list[tuple[Environment, Findings]]:
    """Give every value of all programs of a network its labels.

    A program that is a part of the first one has the values of that one; its outputs are frozen as well.

    Args:
        programs: the captured forward passes, the evaluation-mode one first.
        modules: the modules of the network by path.
        slots: the table that collects equalities.
        hints: for each program.

    Returns:
        For each program, the value of every node, and what was noted on the way.
    """
    found: list[tuple[Environment, Findings]] = []
    for program, given in zip(programs, hints, strict=True):
        if program.is_part:
            env, findings = found[0]
            by_name = {node.name: value for node, value in env.items()}
            own = {node: by_name[node.name] for node in program.graph.nodes if node.op != "output"}
            (output,) = program.graph.find_nodes(op="output")
            _freeze_values(own, output, slots, _IS_OUTPUT, final=True)
            found.append((own, findings))
        else:
            found.append(propagate(program, modules, slots, given))
    return found


def _unread(program: Program) -> frozenset[str]:
    """Find the operators whose results reach no output and no tensor that is written to."""
    read: set[Node] = set()
    for node in reversed(program.graph.nodes):
        writes = node.op == "call_function" and next(written_arguments(node), None) is not None
        if node.op == "output" or writes or not read.isdisjoint(node.users):
            read.add(node)
    return frozenset(node.name for node in program.graph.nodes if node not in read)


def _call(
    node: Node,
    env: Environment,
    slots: SlotTable,
    findings: Findings,
    modules: Mapping[str, nn.Module],
    hints: Hints,
) -> Any:
    if node.target is operator.getitem:
        source, index = node.args
        found = env[source]  # type: ignore[index]
        return found[int(str(index))] if isinstance(found, Sequence) else _plain(node)
    rule = find_rule(str(node.target)) if hasattr(node.target, "_schema") else None
    if rule is None:
        name = getattr(node.target, "__name__", str(node.target))
        place = f"operator {node.target if hasattr(node.target, '_schema') else name}"
        _freeze_values(env, node, slots, f"{place} in '{module_path(node)}' has no rule")
        return _plain(node)
    findings.axes.enter(node)
    found = _checked(node, rule(RuleContext(node, env, slots, findings, modules, hints)))
    found, numbers = with_channel_indices(node, env, found)
    for labels in numbers if node.name not in hints.unread else ():
        slots.freeze(labels, f"{_INDICES_USED} ({operator_place(node)})")
    return found


def _checked(node: Node, found: Value | Sequence[Value]) -> Value | Sequence[Value]:
    """Refuse labels that do not fit the result of an operator: its rule is wrong."""
    result = node.meta.get("val")
    results = result if isinstance(result, Sequence) else [result]
    values = found if isinstance(found, Sequence) else [found]
    for value, tensor in zip(values, results, strict=False):
        sizes = [
            size if own is None else len(own) for size, own in zip(value.shape, value.labels, strict=True)
        ]
        if isinstance(tensor, Tensor) and sizes != list(tensor.shape):
            raise TraceError(
                f"the rule of operator '{node.target}' gives labels for a result of shape {tuple(sizes)}, "
                f"but in '{module_path(node)}' its result has shape {tuple(tensor.shape)}; correct the rule"
            )
    return found


def _plain(node: Node) -> Any:
    """Make values without channels, in the form of the node's result."""
    result = node.meta.get("val")
    if isinstance(result, Tensor):
        return Value.plain(tuple(result.shape))
    if isinstance(result, Sequence):
        return [Value.plain(tuple(item.shape)) if isinstance(item, Tensor) else None for item in result]
    return None


def _freeze_values(
    env: Environment, node: Node, slots: SlotTable, reason: str, *, final: bool = False
) -> None:
    """Freeze everything that an operator touches."""
    for source in node.all_input_nodes:
        found = env.get(source)
        for value in found if isinstance(found, Sequence) else [found]:
            if isinstance(value, Value):
                for labels in value.labels:
                    if labels is not None:
                        slots.freeze(labels, reason, final=final)
                if value.indices_of is not None:
                    slots.freeze(value.indices_of, f"{_INDICES_USED} ({reason})")
