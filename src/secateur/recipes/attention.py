"""Trace a network with each unit of attention that a plan may remove."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from secateur.budget import WidthCurves
from secateur.graph import ChannelGraph, ExampleInputs, trace
from secateur.graph.groups import Group
from secateur.graph.propagation.attention_units import QUERY_HEADS


def attention_graphs(
    model: nn.Module, example_inputs: ExampleInputs, ignore: Sequence[str], attention: str
) -> list[ChannelGraph]:
    """Trace a network with each unit of attention that a plan may remove.

    Args:
        model: the network.
        example_inputs: what to call it with.
        ignore: modules to leave alone.
        attention: one of the units, or ``"auto"``.

    Returns:
        One graph, or with ``"auto"`` a second one, in which query heads are removed instead of whole heads
        wherever they may be.
    """
    if attention != "auto":
        return [trace(model, example_inputs, ignore=ignore, attention=attention)]
    graph = trace(model, example_inputs, ignore=ignore)
    others = {item.module: QUERY_HEADS for item in graph.attentions if QUERY_HEADS in item.others}
    return [graph, trace(model, example_inputs, ignore, others)] if others else [graph]


def curves_of_same_groups(graph: ChannelGraph, other: ChannelGraph, curves: WidthCurves) -> WidthCurves:
    """Select the curves of groups that two graphs of one network have in common.

    Args:
        graph: the graph whose curves are needed.
        other: the graph whose curves are known.
        curves: of ``other``; those of residual branches are kept.
    """
    same = {
        name: curve
        for name, curve in curves.items()
        if name in graph and _members(graph[name]) == _members(other[name])
    }
    return WidthCurves(same, curves.divergence, branches=curves.branches)


def _members(group: Group) -> list[tuple[str, int, list[list[int]]]]:
    """List what belongs to the channels of a group: tensors, dimensions and positions."""
    return [(member.tensor, member.dim, member.slots.tolist()) for member in group.members]


def scores_fit(graph: ChannelGraph, scores: Mapping[str, Any]) -> bool:
    """Return whether scores have one number for each channel of each group of a graph that they name."""
    return all(name in graph and len(values) == graph[name].channels for name, values in scores.items())


def unit_of(graph: ChannelGraph) -> str:
    """Name the unit that is removed from the attentions of a graph that have others."""
    return " and ".join(dict.fromkeys(item.unit for item in graph.attentions if item.others))
