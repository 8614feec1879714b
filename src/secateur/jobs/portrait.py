"""The network as it was and as it is, in plain values: what a report is drawn from.

A report is made without the data, and without running the code that builds the network. So what it shows
of the network's make is written into the run folder when the run ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import Tensor, nn

from secateur.graph import ChannelGraph, Group, Role, trace
from secateur.graph.describe import hanging_shares
from secateur.jobs.layers import layers
from secateur.jobs.profile import Profile, profile
from secateur.latency import device_of
from secateur.recipes import Cut

FORMAT = 1
_FIGURES = ("params", "macs")


def portrait(
    before: nn.Module, after: nn.Module, cuts: Sequence[Cut], inputs: Tensor, timed: Tensor, seconds: float
) -> dict[str, Any]:
    """What a network is made of, before and after a run.

    Args:
        before: the network as it was.
        after: the network that is left.
        cuts: what was done to it, oldest first.
        inputs: an example batch; traced with if nothing was cut.
        timed: the batch whose passage through both networks is timed.
        seconds: spent on timing each network.

    Returns:
        ``cost`` before and after; ``groups`` with their widths ``before`` and ``after``, whom they couple,
        why they are ``frozen`` and the ``fate`` of each channel (the number of the cut that took it, 0 if it
        stays); ``layers``, each with ``params``, ``macs`` and ``ms`` before and after, in the order of the
        network; ``profile``, the conditions of the times.
    """
    graph = cuts[0].plan.graph if cuts else trace(before, inputs)
    left = cuts[-1].plan.graph.after(cuts[-1].plan) if cuts else graph
    times = profile({"before": before, "after": after}, timed, seconds)
    return {
        "format": FORMAT,
        "cost": {"before": asdict(graph.cost()), "after": asdict(left.cost())},
        "groups": _groups(graph, left, cuts),
        "layers": _layers(before, graph, left, times),
        "profile": {
            "batch": len(timed),
            "device": str(device_of(before)),
            "runs": times["before"].runs,
            "total_ms": {name: sum(found.own_ms.values()) for name, found in times.items()},
        },
    }


def coupled(group: Group) -> dict[str, list[str]]:
    """The modules that a group couples, by what they do with its channels.

    Args:
        group: any group.

    Returns:
        ``written_by``, ``read_by`` and ``carried_by``: paths in the order of the network.
    """
    return {
        "written_by": _modules(group, Role.PRODUCER),
        "read_by": _modules(group, Role.CONSUMER),
        "carried_by": _modules(group, Role.CARRIER),
    }


def _modules(group: Group, role: Role) -> list[str]:
    return list(dict.fromkeys(member.module or member.tensor for member in group.roles(role)))


def _groups(graph: ChannelGraph, left: ChannelGraph, cuts: Sequence[Cut]) -> list[dict[str, Any]]:
    shares, fates = hanging_shares(graph), _fates(graph, cuts)
    return [
        {
            "name": group.name,
            "before": group.channels,
            "after": left[group.name].channels,
            "frozen": group.reason,
            **coupled(group),
            "params": float(shares[number, 0]),
            "macs": float(shares[number, 1]),
            "fate": fates[group.name] if any(fates[group.name]) else [],
        }
        for number, group in enumerate(graph.groups)
    ]


def _fates(graph: ChannelGraph, cuts: Sequence[Cut]) -> dict[str, list[int]]:
    """For each channel of each group the number of the cut that took it; 0 if it stays."""
    fates = {group.name: np.zeros(group.channels, dtype=np.int64) for group in graph.groups}
    alive = {name: np.arange(len(fate)) for name, fate in fates.items()}
    for cut in cuts:
        for name, channels in cut.plan.removed.items():
            gone = np.asarray(channels, dtype=np.int64)
            fates[name][alive[name][gone]] = cut.number
            alive[name] = np.delete(alive[name], gone)
    return {name: [int(number) for number in fate] for name, fate in fates.items()}


def _layers(
    model: nn.Module, graph: ChannelGraph, left: ChannelGraph, times: dict[str, Profile]
) -> list[dict[str, Any]]:
    """All modules that cost anything: parameters, multiply-accumulates, or time."""
    costs = {
        "before": {layer.name: layer for layer in layers(model, graph)},
        "after": {layer.name: layer for layer in layers(model, left)},
    }
    found = []
    for name, module in model.named_modules():
        timed = any(name in times[when].own_ms for when in costs)
        if not timed and name not in costs["before"]:
            continue
        row: dict[str, Any] = {"name": name, "kind": type(module).__name__}
        for when, known in costs.items():
            layer = known.get(name)
            row[when] = {key: getattr(layer, key) if layer else 0 for key in _FIGURES}
            row[when]["ms"] = times[when].own_ms.get(name)
        found.append(row)
    return found
