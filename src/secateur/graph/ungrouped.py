"""Find why parameters belong to no channel group."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from secateur.graph.capture.nodes import operator_place
from secateur.graph.capture.program import Program
from secateur.graph.channels import Channels
from secateur.graph.labels import SlotTable

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
    """Return what the forward pass does with a parameter that no rule gave channels to."""
    users = [
        user
        for program in programs
        for node in program.graph.nodes
        if program.tensor_names.get(node.name) == name
        for user in node.users
    ]
    if not users:
        return UNUSED
    shown = dict.fromkeys(map(operator_place, users))
    return f"used only by {', '.join(list(shown)[:3])}, which makes no channels of it"
