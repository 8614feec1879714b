"""Find the channel graph of a network: which channels are coupled, and which may be cut.

``capture`` turns a network into a flat program; ``sizes`` records where the sizes in the code come from;
``propagation`` gives every value its ``labels`` by the table of ``rules``, and solves the sizes; ``channels``
resolves labels into ``groups``; ``costing`` counts the costs; ``checking`` cuts every group on trial;
``channel_graph`` is what a user sees.
"""

from __future__ import annotations

from secateur.graph.capture.program import ExampleInputs
from secateur.graph.channel_graph import ChannelGraph
from secateur.graph.costs import Cost
from secateur.graph.groups import Group, Member, Reader, Role
from secateur.graph.labels import Value
from secateur.graph.propagation.operator_context import OperatorContext
from secateur.graph.rules import register_rule
from secateur.graph.tracing import trace

__all__ = [
    "ChannelGraph",
    "Cost",
    "ExampleInputs",
    "Group",
    "Member",
    "OperatorContext",
    "Reader",
    "Role",
    "Value",
    "register_rule",
    "trace",
]
