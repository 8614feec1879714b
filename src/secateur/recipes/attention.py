"""Trace a network with each unit of attention that a plan may remove."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from secateur.graph import ChannelGraph, ExampleInputs, trace
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


def scores_fit(graph: ChannelGraph, scores: Mapping[str, Any]) -> bool:
    """Return whether scores have one number for each channel of each group of a graph that they name."""
    return all(name in graph and len(values) == graph[name].channels for name, values in scores.items())


def unit_of(graph: ChannelGraph) -> str:
    """Name the unit that is removed from the attentions of a graph that have others."""
    return " and ".join(dict.fromkeys(item.unit for item in graph.attentions if item.others))
