"""The graph in words."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from secateur.cli.structure import structure
from secateur.graph import ChannelGraph, trace
from secateur.graph.describe import describe, ungrouped_by_reason


def graph_with(reasons: dict[str, str]) -> ChannelGraph:
    graph = trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4))
    return replace(graph, wiring=replace(graph.wiring, ungrouped=reasons))


def test_parameters_of_no_group_are_listed_by_reason() -> None:
    reasons = {f"embed.{n}.weight": "no rule for aten.embedding_bag" for n in range(5)}
    text = describe(graph_with({**reasons, "scale": "is a single number"}))
    assert text.endswith(
        "\n\nin no group:\n"
        "  embed.0.weight, embed.1.weight, embed.2.weight and 2 more: no rule for aten.embedding_bag\n"
        "  scale: is a single number"
    )
    assert "frozen:" in text


def test_where_all_are_in_groups_nothing_is_added() -> None:
    assert "in no group" not in describe(graph_with({}))
    assert ungrouped_by_reason(graph_with({})) == {}


def test_inspect_shows_them_too() -> None:
    from rich.console import Console

    from secateur.jobs.inspect import inspect
    from secateur.jobs.settings import NetworkChoice

    found = inspect(NetworkChoice(source="secateur:digits", weights="none"))
    assert isinstance(found["ungrouped"], list)
    found["ungrouped"] = [{"names": ["a", "b", "c", "d"], "reason": "no operator reads them"}]
    console = Console(width=120)
    with console.capture() as capture:
        console.print(structure(found))
    assert "in no group" in capture.get()
    assert "a, b, c and 1 more" in capture.get()
    assert "no operator reads them" in capture.get()
