"""Summarise a network before and after a run, in plain values.

A report is written without the data and without the code of the network, so a run saves what the report needs
(``network.json``): groups, layers, costs and times.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from secateur.devices import device_of, wait
from secateur.errors import DataError
from secateur.graph import ChannelGraph, Group, Role, trace
from secateur.graph.capture.program import ExampleInputs, call_arguments, mode_of
from secateur.graph.costing import module_macs
from secateur.graph.describe import branch_shares, group_cost_shares
from secateur.latency.measure import batch_size
from secateur.recipes import Cut
from secateur.untouched import untouched

_MIN_RUNS, _MAX_RUNS, _WARM_UP = 3, 200, 2


class Record(BaseModel):
    """Define the base class of all parts: immutable; unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class GroupSummary(Record):
    """A channel group before and after a run.

    Attributes:
        name: of the group.
        before: number of channels before.
        after: number of channels after.
        frozen: why it must not be cut; ``None`` if it may be cut.
        written_by: modules that write its channels.
        read_by: modules that contract over them.
        carried_by: modules that hold one number or filter for each.
        params: share of the parameters that depend on it, before.
        macs: share of the multiply-accumulates that depend on it, before.
        removed_by: for each channel, the number of the cut that removed it, 0 if it stays; empty if all stay.
    """

    name: str
    before: int
    after: int
    frozen: str | None
    written_by: tuple[str, ...]
    read_by: tuple[str, ...]
    carried_by: tuple[str, ...]
    params: float
    macs: float
    removed_by: tuple[int, ...] = ()

    @property
    def modules(self) -> tuple[str, ...]:
        """List all modules that it couples, each once."""
        return tuple(dict.fromkeys((*self.written_by, *self.carried_by, *self.read_by)))


class BranchSummary(Record):
    """A residual branch before and after a run.

    Attributes:
        name: of the branch.
        frozen: why it must not be removed; ``None`` if it may be removed.
        params: share of the parameters that only it has, before.
        macs: share of the multiply-accumulates that only it needs, before.
        removed_by: the number of the cut that removed it, or a branch that it is a part of; 0 if it stays.
    """

    name: str
    frozen: str | None
    params: float
    macs: float
    removed_by: int = 0


class LayerCost(Record):
    """The costs of one module.

    Attributes:
        params: elements of its own parameters, without those of its children.
        macs: multiply-accumulates for one example.
        ms: milliseconds spent in it and in none of its children; ``None`` if it did not run.
    """

    params: int = 0
    macs: int = 0
    ms: float | None = None


class LayerSummary(Record):
    """A module with parameters or MACs, before and after a run.

    Attributes:
        name: its path.
        kind: its class.
        before: its cost before.
        after: its cost after.
    """

    name: str
    kind: str
    before: LayerCost
    after: LayerCost


class LayerTiming(Record):
    """The conditions under which layers were timed.

    Attributes:
        batch: examples in the forward pass.
        device: where it ran.
        runs: passes of each network, interleaved.
    """

    batch: int
    device: str
    runs: int


class NetworkSummary(Record):
    """A network before and after a run.

    Attributes:
        format: version of the fields.
        groups: its channel groups, in the order of the network.
        branches: its residual branches, in the order of the network.
        layers: its modules with parameters or MACs, in the order of the network.
        cost_before: ``params``, ``macs``, ``bytes`` and ``memory`` before.
        cost_after: the same after.
        timing: how the times of the layers were measured.
    """

    format: Literal[1] = 1
    groups: tuple[GroupSummary, ...]
    branches: tuple[BranchSummary, ...] = ()
    layers: tuple[LayerSummary, ...]
    cost_before: dict[str, int]
    cost_after: dict[str, int]
    timing: LayerTiming

    @classmethod
    def from_json(cls, text: str) -> NetworkSummary:
        """Read a summary from JSON, as :meth:`model_dump_json` writes it.

        Raises:
            DataError: the text is something else.

        >>> timing = LayerTiming(batch=1, device="cpu", runs=3)
        >>> found = NetworkSummary(groups=(), layers=(), cost_before={}, cost_after={}, timing=timing)
        >>> NetworkSummary.from_json(found.model_dump_json()) == found
        True
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise DataError(f"this is not a summary of a network ({where}: {first['msg']})") from error


def summarise(
    before: nn.Module,
    after: nn.Module,
    cuts: Sequence[Cut],
    inputs: ExampleInputs,
    timed: ExampleInputs,
    seconds: float,
) -> NetworkSummary:
    """Summarise a network before and after a run.

    Args:
        before: the network before.
        after: the network after.
        cuts: all cuts, oldest first.
        inputs: an example batch; used to trace the network if nothing was cut.
        timed: the batch that both networks are timed on.
        seconds: spent on timing each network.

    Returns:
        Groups, layers, costs and times.
    """
    graph = cuts[0].plan.graph if cuts else trace(before, inputs)
    left = cuts[-1].plan.graph.after(cuts[-1].plan) if cuts else graph
    times, runs = module_times((before, after), timed, seconds)
    sides = [
        {
            name: cost.model_copy(update={"ms": own_ms.get(name)})
            for name, cost in layer_costs(before, side, names=own_ms).items()
        }
        for side, own_ms in zip((graph, left), times, strict=True)
    ]
    return NetworkSummary(
        groups=_groups(graph, left, cuts),
        branches=_branches(graph, cuts),
        layers=tuple(
            LayerSummary(
                name=name,
                kind=type(module).__name__,
                before=sides[0].get(name, LayerCost()),
                after=sides[1].get(name, LayerCost()),
            )
            for name, module in before.named_modules()
            if name in sides[0]
        ),
        cost_before=asdict(graph.cost()),
        cost_after=asdict(left.cost()),
        timing=LayerTiming(batch=batch_size(timed), device=str(device_of(before)), runs=runs),
    )


def coupled(group: Group) -> dict[str, tuple[str, ...]]:
    """List the modules that a group couples, by what they do with its channels.

    Args:
        group: any group.

    Returns:
        ``written_by``, ``read_by`` and ``carried_by``: paths in the order of the network.
    """
    roles = {"written_by": Role.PRODUCER, "read_by": Role.CONSUMER, "carried_by": Role.CARRIER}
    return {
        key: tuple(dict.fromkeys(member.module or member.tensor for member in group.roles(role)))
        for key, role in roles.items()
    }


def layer_costs(
    model: nn.Module, graph: ChannelGraph, names: Mapping[str, object] | None = None
) -> dict[str, LayerCost]:
    """Count parameters and multiply-accumulates, module by module.

    Args:
        model: the network that was traced, uncut.
        graph: its channel graph; if it is the graph after cuts, costs are those after the cuts.
        names: modules that are listed even if they cost nothing.

    Returns:
        The cost of every module that holds parameters or multiplies, by its path, in the order of the
        network; their sums are the network's.

    >>> from secateur.graph import trace
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> found = layer_costs(net, trace(net, torch.randn(1, 4)))
    >>> [(name, cost.params, cost.macs) for name, cost in found.items()]
    [('0', 40, 32), ('2', 18, 16)]
    """
    macs = module_macs(graph)
    tensors = {name for name, _ in model.named_parameters()}  # a tied one has one name here
    found = {}
    for name, module in model.named_modules():
        held = (f"{name}.{own}".lstrip(".") for own, _ in module.named_parameters(recurse=False))
        left = tensors & graph.tensors.keys()  # without those of removed residual branches
        params = sum(math.prod(graph.tensors[tensor]) for tensor in held if tensor in left)
        if params or macs.get(name) or name in (names or ()):
            found[name] = LayerCost(params=params, macs=macs.get(name, 0))
    return found


def module_times(
    models: Sequence[nn.Module], inputs: ExampleInputs, seconds: float = 1.0
) -> tuple[list[dict[str, float]], int]:
    """Time every module of networks whose passes are interleaved, in evaluation mode.

    Reading the clock takes some microseconds for each module, so the sum is somewhat more than the time of
    a pass. Modes and hooks are restored.

    Args:
        models: the networks.
        inputs: an example batch that all of them take, on their device.
        seconds: spent on each network; the last pass is completed.

    Returns:
        For each network, by module, the milliseconds spent in it and in none of its children: summed over
        its calls, median over the passes; and the number of passes.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    >>> (times,), runs = module_times([net], torch.ones(2, 4), seconds=0)
    >>> list(times), runs
    (['', '0', '1'], 3)
    """
    passes: list[list[dict[str, float]]] = [[] for _ in models]
    spent = 0.0
    with torch.inference_mode():
        for number in range(_WARM_UP + _MAX_RUNS):
            began = time.perf_counter()
            for model, found in zip(models, passes, strict=True):
                found.append(_timed(model, inputs))
            spent += time.perf_counter() - began if number >= _WARM_UP else 0.0
            if number + 1 >= _WARM_UP + _MIN_RUNS and spent >= seconds * len(models):
                break
    kept = [found[_WARM_UP:] for found in passes]
    times = [{name: median(each[name] for each in found) for name in found[0]} for found in kept]
    return times, len(kept[0])


def _timed(model: nn.Module, inputs: ExampleInputs) -> dict[str, float]:
    """Time one forward pass; milliseconds by module, in the order of the network."""
    positional, named = call_arguments(inputs)
    with untouched(model), mode_of(model, training=False), _clocks(model) as own_ms:
        model(*positional, **named)
    return {name: own_ms[name] for name, _ in model.named_modules() if name in own_ms}


@contextmanager
def _clocks(model: nn.Module) -> Iterator[dict[str, float]]:
    """Time every module; yield its milliseconds without those of the modules that it calls."""
    device = device_of(model)
    own_ms: dict[str, float] = {}
    running: list[list[float]] = []  # for each running module: its start, and the seconds of its children

    def begin(*_: Any) -> None:
        wait(device)
        running.append([time.perf_counter(), 0.0])

    def end(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            wait(device)
            began, inner = running.pop()
            took = time.perf_counter() - began
            own_ms[name] = own_ms.get(name, 0.0) + (took - inner) * 1e3
            if running:
                running[-1][1] += took

        return hook

    handles = []
    try:
        for name, module in model.named_modules():
            handles += [module.register_forward_pre_hook(begin), module.register_forward_hook(end(name))]
        yield own_ms
    finally:
        for handle in handles:
            handle.remove()


def _groups(graph: ChannelGraph, left: ChannelGraph, cuts: Sequence[Cut]) -> tuple[GroupSummary, ...]:
    shares, removed_by = group_cost_shares(graph), _removed_by(graph, cuts)
    return tuple(
        GroupSummary(
            name=group.name,
            before=group.channels,
            after=left[group.name].channels,
            frozen=group.reason,
            **coupled(group),
            params=float(shares[number, 0]),
            macs=float(shares[number, 1]),
            removed_by=removed_by[group.name] if any(removed_by[group.name]) else (),
        )
        for number, group in enumerate(graph.groups)
    )


def _branches(graph: ChannelGraph, cuts: Sequence[Cut]) -> tuple[BranchSummary, ...]:
    removed_by: dict[str, int] = {}
    for cut in cuts:
        left = {branch.name for branch in cut.plan.graph.after(cut.plan).branches}
        for branch in cut.plan.graph.branches:
            if branch.name not in left:
                removed_by[branch.name] = cut.number
    return tuple(
        BranchSummary(
            name=name,
            frozen=graph.branch(name).reason,
            params=params,
            macs=macs,
            removed_by=removed_by.get(name, 0),
        )
        for name, (params, macs) in branch_shares(graph).items()
    )


def _removed_by(graph: ChannelGraph, cuts: Sequence[Cut]) -> dict[str, tuple[int, ...]]:
    """Find the number of the cut that removed each channel of each group; 0 if it stays."""
    found = {group.name: np.zeros(group.channels, dtype=np.int64) for group in graph.groups}
    alive = {name: np.arange(len(numbers)) for name, numbers in found.items()}
    for cut in cuts:
        for name, channels in cut.plan.removed.items():
            gone = np.asarray(channels, dtype=np.int64)
            found[name][alive[name][gone]] = cut.number
            alive[name] = np.delete(alive[name], gone)
        for group in cut.plan.graph.after(cut.plan).groups:
            if not group.channels:  # it vanished with a residual branch
                found[group.name][alive[group.name]] = cut.number
                alive[group.name] = alive[group.name][:0]
    return {name: tuple(numbers.tolist()) for name, numbers in found.items()}
