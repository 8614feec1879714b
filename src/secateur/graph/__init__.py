"""Channel graph: what hangs together in a network, and what may be cut.

The road inside: ``capture`` turns a network into a flat program; ``walk`` gives every value its
``labels`` by the table of ``rules``; ``wiring`` resolves them into channels and ``groups``;
``costing`` writes the costs down; ``trial`` cuts every group on trial; ``channel_graph`` is what a user sees.
"""

from __future__ import annotations

from secateur.graph.capture.program import ExampleInputs
from secateur.graph.channel_graph import ChannelGraph
from secateur.graph.costs import Cost
from secateur.graph.groups import Group, Member, Reader, Role
from secateur.graph.labels import Value
from secateur.graph.propagation.rule_context import RuleContext
from secateur.graph.rules import register_rule
from secateur.graph.tracing import trace

__all__ = [
    "ChannelGraph",
    "Cost",
    "ExampleInputs",
    "Group",
    "Member",
    "Reader",
    "Role",
    "RuleContext",
    "Value",
    "register_rule",
    "trace",
]
