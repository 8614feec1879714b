"""Say why parameters belong to no channel group."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from torch.fx import Node

from secateur.graph.capture.nodes import module_path, operator_name
from secateur.graph.capture.program import Origin, Program
from secateur.graph.labels import SlotTable
from secateur.graph.wiring import Channels

UNUSED = "the forward pass does not use it"
"""Reason for parameters that no captured pass reads."""


def ungrouped(
    programs: Sequence[Program], slots: SlotTable, channels: Channels, parameters: Iterable[str]
) -> dict[str, str]:
    """Find the parameters that no group holds, each with the reason.

    Args:
        programs: the captured forward passes.
        slots: the table after propagation.
        channels: what was found.
        parameters: names of parameters.

    Returns:
        Reasons by the names of parameters, in the order of their slots.
    """
    component = slots.components()
    reason, texts = slots.reasons(component)
    wanted, found = set(parameters), dict[str, str]()
    for name in dict.fromkeys(name for name, _ in slots.owners):
        own = (
            [slots.span(name, dim) for other, dim in slots.owners if other == name] if name in wanted else []
        )
        if not own or any((channels.group_of[span] >= 0).any() for span in own):
            continue
        reasons = [int(index) for span in own for index in reason[component[span]] if index >= 0]
        found[name] = texts[reasons[0]] if reasons else _use(programs, name)
    return found


def _use(programs: Sequence[Program], name: str) -> str:
    """Say what the forward pass does with a parameter that no rule gave channels to."""
    users = [node for program in programs for item in _nodes(program, name) for node in item.users]
    if not users:
        return UNUSED
    shown = dict.fromkeys(_place(node) for node in users)
    return f"used only by {', '.join(list(shown)[:3])}, which makes no channels of it"


def _nodes(program: Program, name: str) -> Collection[Node]:
    return [
        node
        for node in program.graph.nodes
        if node.op == "placeholder"
        and program.placeholders[node.name].origin is Origin.TENSOR
        and program.placeholders[node.name].name == name
    ]


def _place(node: Node) -> str:
    operator = operator_name(node)
    path = module_path(node)
    return f"{operator} in '{path}'" if path else operator
