"""Drawing up the portrait of a network at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
from torch import Tensor, nn

from secateur.devices import device_of
from secateur.graph import ChannelGraph, Group, Role, trace
from secateur.graph.describe import hanging_shares
from secateur.jobs.layers import Layer, layers
from secateur.jobs.portrait import Costs, GroupPortrait, LayerPortrait, Portrait, Timing
from secateur.jobs.profile import Profile, profile
from secateur.recipes import Cut


def portray(
    before: nn.Module, after: nn.Module, cuts: Sequence[Cut], inputs: Tensor, timed: Tensor, seconds: float
) -> Portrait:
    """What a network is made of, before and after a run.

    Args:
        before: the network as it was.
        after: the network that is left.
        cuts: what was done to it, oldest first.
        inputs: an example batch; traced with if nothing was cut.
        timed: the batch whose passage through both networks is timed.
        seconds: spent on timing each network.

    Returns:
        Groups, layers, costs and times.
    """
    graph = cuts[0].plan.graph if cuts else trace(before, inputs)
    left = cuts[-1].plan.graph.after(cuts[-1].plan) if cuts else graph
    times = profile({"before": before, "after": after}, timed, seconds)
    return Portrait(
        groups=_groups(graph, left, cuts),
        layers=_layers(before, graph, left, times),
        cost_before=asdict(graph.cost()),
        cost_after=asdict(left.cost()),
        timing=Timing(len(timed), str(device_of(before)), times["before"].runs),
    )


def coupled(group: Group) -> dict[str, tuple[str, ...]]:
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


def _modules(group: Group, role: Role) -> tuple[str, ...]:
    return tuple(dict.fromkeys(member.module or member.tensor for member in group.roles(role)))


def _groups(graph: ChannelGraph, left: ChannelGraph, cuts: Sequence[Cut]) -> tuple[GroupPortrait, ...]:
    shares, fates = hanging_shares(graph), _fates(graph, cuts)
    return tuple(
        GroupPortrait(
            name=group.name,
            before=group.channels,
            after=left[group.name].channels,
            frozen=group.reason,
            **coupled(group),
            params=float(shares[number, 0]),
            macs=float(shares[number, 1]),
            fate=fates[group.name] if any(fates[group.name]) else (),
        )
        for number, group in enumerate(graph.groups)
    )


def _fates(graph: ChannelGraph, cuts: Sequence[Cut]) -> dict[str, tuple[int, ...]]:
    """For each channel of each group the number of the cut that took it; 0 if it stays."""
    fates = {group.name: np.zeros(group.channels, dtype=np.int64) for group in graph.groups}
    alive = {name: np.arange(len(fate)) for name, fate in fates.items()}
    for cut in cuts:
        for name, channels in cut.plan.removed.items():
            gone = np.asarray(channels, dtype=np.int64)
            fates[name][alive[name][gone]] = cut.number
            alive[name] = np.delete(alive[name], gone)
    return {name: tuple(fate.tolist()) for name, fate in fates.items()}


def _layers(
    model: nn.Module, graph: ChannelGraph, left: ChannelGraph, times: Mapping[str, Profile]
) -> tuple[LayerPortrait, ...]:
    """All modules that cost anything: parameters, multiply-accumulates, or time."""
    costly = {
        "before": {layer.name: layer for layer in layers(model, graph)},
        "after": {layer.name: layer for layer in layers(model, left)},
    }

    def costs(name: str, when: str) -> Costs:
        layer = costly[when].get(name, Layer(name, "", 0, 0))
        return Costs(layer.params, layer.macs, times[when].own_ms.get(name))

    return tuple(
        LayerPortrait(name, type(module).__name__, costs(name, "before"), costs(name, "after"))
        for name, module in model.named_modules()
        if name in costly["before"] or name in times["before"].own_ms
    )
