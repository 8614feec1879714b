"""Describe the structure of a network: the job behind ``secateur inspect``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from secateur.budget import Budget, forecast
from secateur.criteria import score
from secateur.errors import UsageError
from secateur.graph import ChannelGraph, Role, trace
from secateur.graph.describe import branch_shares, group_cost_shares, ungrouped_by_reason
from secateur.inputs import InputSpec, NamedInputs
from secateur.jobs.network_summary import coupled, layer_costs
from secateur.jobs.networks import Network, captured_network, open_network
from secateur.jobs.settings import NetworkChoice
from secateur.recipes import Callback, LatencyOptions


def inspect(
    choice: NetworkChoice,
    input_size: tuple[int, ...] | None = None,
    ignore: Sequence[str] = (),
    *,
    attention: str | None = None,
    limits: Mapping[str, float | str] | None = None,
    latency: bool = False,
    batch: int = 1,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Find the channel groups and residual branches of a network, and what its layers cost.

    Args:
        choice: the network.
        input_size: shape of one example; the network's own if not given. For text or sound one number:
            how long it is.
        ignore: modules to leave alone.
        attention: what is removed from attention, as :func:`secateur.trace` takes it.
        limits: a budget; the costs of a plan by weight magnitude for it are computed.
        latency: whether the operators are measured on this device; always if the budget limits latency.
        batch: examples in the forward pass that is timed.
        callbacks: receive progress and notes.

    Returns:
        ``model``; ``input``, the shape of one example, or of each input by name; ``cost``; ``groups``, each
        with ``name``, ``channels``, ``frozen`` (the reason, or ``None``), ``written_by``, ``read_by``,
        ``carried_by``, and the shares of ``params`` and ``macs`` that depend on it; ``branches``: residual
        branches, each with ``name``, ``frozen``, ``part_of`` (the branch that it is a part of, or ``None``)
        and the shares of ``params`` and ``macs`` that only it needs; ``ungrouped``: parameters
        that no group holds, as ``names`` with a ``reason``; ``layers``, each with ``name``, ``kind``,
        ``params``, ``macs``, and the numbers of channels ``in`` and ``out`` (``None`` where it reads or
        writes none); ``attention``: for each ``module``, the ``unit`` that is removed, and ``others`` that
        could be; ``forecast``: for each quantity the amounts ``now``, ``least``, ``allowed`` and
        ``planned``, and why a budget is ``impossible``.

    Raises:
        TraceError: the network cannot be captured.
    """
    network = captured_network(open_network(choice))
    draw, shown = _inputs(network, input_size)
    graph = trace(network.model, draw(2), ignore=ignore, attention=attention)
    budget = Budget(**limits) if limits else None
    scores = score(network.model, graph, "magnitude") if budget is not None and graph.prunable else {}
    table = None
    if latency or (budget is not None and budget.latency is not None):
        table = LatencyOptions().tuner(network.model, graph, draw(batch), callbacks).table
    return {
        "model": network.name,
        "input": shown,
        "cost": asdict(graph.cost()),
        "groups": _groups(graph),
        "layers": _layers(network.model, graph),
        "attention": [
            {"module": item.module, "unit": item.unit, "others": list(item.others)}
            for item in graph.attentions
        ],
        "branches": _branches(graph),
        "ungrouped": [
            {"names": names, "reason": reason} for reason, names in ungrouped_by_reason(graph).items()
        ],
        "forecast": forecast(graph, budget, scores, latency=table).to_dict(),
    }


def _inputs(
    network: Network, size: tuple[int, ...] | None
) -> tuple[Callable[[int], Any], list[int] | dict[str, list[int]]]:
    """Return what draws a batch of inputs, and the shape of one example."""
    inputs = network.inputs
    if isinstance(inputs, InputSpec):
        shape = size or inputs.size
        seed = torch.Generator().manual_seed
        return lambda batch: torch.randn(batch, *shape, generator=seed(0)), list(shape)
    named = inputs if size is None else _long(network, inputs, size)
    return named.example, {name: list(shape) for name, shape in named.sizes().items()}


def _long(network: Network, inputs: NamedInputs, size: tuple[int, ...]) -> NamedInputs:
    """Change the length of text or sound."""
    if len(size) != 1 or network.spec is None:
        raise UsageError(
            f"{network.name} takes {', '.join(inputs.sizes())}; give their length as one number, such as 128"
        )
    spec = replace(network.spec, arguments={**network.spec.arguments, "length": size[0]})
    longer = spec.inputs
    return longer if isinstance(longer, NamedInputs) else inputs


def _layers(model: nn.Module, graph: ChannelGraph) -> list[dict[str, Any]]:
    """List costs and widths of every layer."""
    sizes: dict[tuple[str, Role], int] = {}
    for group in graph.groups:
        for member in group.members:
            place = member.module, member.role
            sizes[place] = max(sizes.get(place, 0), graph.tensors[member.tensor][member.dim])
    rows = []
    for name, found in layer_costs(model, graph).items():
        carried = sizes.get((name, Role.CARRIER))
        width_in = sizes.get((name, Role.CONSUMER))
        width_out = sizes.get((name, Role.PRODUCER), carried if width_in is None else None)
        kind = type(model.get_submodule(name)).__name__
        rows.append(
            {
                "name": name,
                "kind": kind,
                "params": found.params,
                "macs": found.macs,
                "in": width_in,
                "out": width_out,
            }
        )
    return rows


def _branches(graph: ChannelGraph) -> list[dict[str, Any]]:
    shares = branch_shares(graph)
    return [
        {
            "name": branch.name,
            "frozen": branch.reason,
            "part_of": branch.parent,
            "params": shares[branch.name][0],
            "macs": shares[branch.name][1],
        }
        for branch in graph.branches
    ]


def _groups(graph: ChannelGraph) -> list[dict[str, Any]]:
    shares = group_cost_shares(graph)
    return [
        {
            "name": group.name,
            "channels": group.channels,
            "frozen": group.reason,
            **{role: list(modules) for role, modules in coupled(group).items()},
            "params": float(shares[number, 0]),
            "macs": float(shares[number, 1]),
        }
        for number, group in enumerate(graph.groups)
    ]
