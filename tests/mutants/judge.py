"""Whether a cut is right, decided without the code that was broken.

Three answers, of which the first that applies counts:

1. The small network is, tensor by tensor and attribute by attribute, what the unbroken library cuts if it is
   asked for the same positions, and these are whole channels of groups that it offers.
2. It computes what the original computes with zeros in the weights that read the removed positions, or also
   in those that write them. This needs no engine, but says nothing of statistics over channels.
3. It computes what the unbroken masked original computes with the removed positions masked.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import secateur as sec
from secateur.graph import ChannelGraph, Role
from secateur.graph.capture.program import call_arguments
from secateur.graph.checking.draws import random_inputs
from secateur.graph.checking.execution import run_reference
from secateur.graph.cutting.tensors import named_tensors

RIGHT, STALE, WRONG = "right", "stale attribute", "wrong"
OTHER_KIND = "is of another kind"
LIMIT = 1e-7
"""Largest relative difference at which two results count as equal."""


@dataclass(frozen=True)
class Verdict:
    """What was found.

    Attributes:
        answer: right, wrong, or right but for an attribute that says another size than the tensors have.
        reason: in words.
        keep: the plan of the unbroken library that does the same, if there is one.
    """

    answer: str
    reason: str = ""
    keep: Mapping[str, Sequence[int]] | None = None


Planned = Mapping[tuple[str, int], frozenset[int]]
"""Positions that a plan removes, by tensor and dimension."""


def judged(
    model: nn.Module, small: nn.Module, graph: ChannelGraph, inputs: Any, planned: Planned | None = None
) -> Verdict:
    """Judge a cut network.

    Args:
        model: the network before the cut.
        small: the network after it.
        graph: the graph of the network by the unbroken library.
        inputs: example inputs.
        planned: what was to be removed; another cut, however right by itself, is then a wrong one.
    """
    places = positions(named_tensors(model), named_tensors(small))
    for name, found in places.items() if planned is not None else ():
        for dim, index in enumerate(found or ()):
            gone = frozenset(range(named_tensors(model)[name].shape[dim])) - frozenset(index.tolist())
            if gone != planned.get((name, dim), frozenset()):
                return Verdict(WRONG, f"{name}, dimension {dim}, lost {sorted(gone)}, which is not the plan")
    removed = _removed(graph, places)
    keep, why = _whole_channels(graph, removed)
    draws = [random_inputs(graph.wiring.program, inputs, seed) for seed in (71, 72)]
    if keep is not None:
        wanted = sec.apply_plan(model, sec.PruningPlan(graph, keep))
        why = _unlike(named_tensors(wanted), named_tensors(small))
        if not why:
            return _with_attributes(wanted, small, draws, keep)
    if any(item is None for item in places.values()):
        unknown = [name for name, item in places.items() if item is None]
        why = f"{why or 'other numbers'} ({unknown[0]} is not made of whole slices of the original)"
    found = _by_numbers(model, small, graph, draws, removed, places, why)
    if found.answer == RIGHT and why.endswith(OTHER_KIND):
        return Verdict(STALE, why, keep)
    return found


Places = Mapping[str, list[np.ndarray] | None]
"""For each tensor, the positions of each dimension that are still there; ``None`` where that is unknown."""


def positions(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> Places:
    """Which positions of each dimension are still there, by the numbers themselves.

    Args:
        old: tensors that each hold different numbers.
        new: the same after a cut.

    Returns:
        For each tensor and dimension the old positions in their new order; ``None`` for a tensor that holds
        other numbers.
    """
    return {name: _positions(tensor.detach(), new.get(name)) for name, tensor in old.items()}


def _positions(old: Tensor, new: Tensor | None) -> list[np.ndarray] | None:
    if new is None or new.dim() != old.dim():
        return None
    if old.shape == new.shape and torch.equal(old, new):
        return [np.arange(size) for size in old.shape]
    flat = old.flatten().numpy()
    if len(np.unique(flat)) < len(flat):
        return None  # the same number twice: it does not tell where it was
    order = np.argsort(flat, kind="stable")
    found = np.searchsorted(flat[order], new.detach().flatten().numpy())
    found = order[np.minimum(found, len(order) - 1)]
    if not new.numel() or not np.array_equal(flat[found], new.detach().flatten().numpy()):
        return None
    result = []
    for dim, index in enumerate(np.unravel_index(found, tuple(old.shape))):
        block = np.moveaxis(index.reshape(tuple(new.shape)), dim, 0).reshape(new.shape[dim], -1)
        if (block != block[:, :1]).any():
            return None
        result.append(block[:, 0])
    return result


def _removed(graph: ChannelGraph, places: Places) -> np.ndarray:
    """Per slot, whether it is gone; what an unknown tensor lost is told from the rest of the channel."""
    removed = np.zeros(graph.removed.size, dtype=bool)
    unknown = []
    for name, shape in graph.wiring.shapes.items():
        for dim, size in enumerate(shape):
            span = graph.span(name, dim)
            found = places[name]
            if found is None:
                unknown.append(span)
            else:
                removed[span] = ~np.isin(np.arange(size), found[dim])
    group, channel = graph.wiring.group_of, graph.wiring.channel_of
    here = removed[: len(group)]  # those of residual branches follow
    gone = set(zip(group[here].tolist(), channel[here].tolist(), strict=True)) - {(-1, -1)}
    for span in unknown:
        removed[span] = [
            pair in gone for pair in zip(group[span].tolist(), channel[span].tolist(), strict=True)
        ]
    return removed


def _whole_channels(graph: ChannelGraph, removed: np.ndarray) -> tuple[dict[str, list[int]] | None, str]:
    """The plan that removes the same slots, or why there is none."""
    keep: dict[str, list[int]] = {}
    covered = np.zeros_like(removed)
    for group in graph.groups:
        gone = np.zeros((group.channels, len(group.members)), dtype=bool)
        for column, member in enumerate(group.members):
            span = graph.span(member.tensor, member.dim)
            slots = member.slots + span.start
            gone[:, column] = removed[slots].all(1)
            if (removed[slots].any(1) != gone[:, column]).any():
                return (
                    None,
                    f"part of a channel of '{group.name}' is gone ({member.tensor}, dimension {member.dim})",
                )
            covered[slots] = True
        if (gone != gone[:, :1]).any():
            split = group.members[int((gone != gone[:, :1]).any(0).argmax())]
            return None, f"'{group.name}' lost channels in some tensors only (not so {split.tensor})"
        if not gone.any():
            continue
        if not group.prunable:
            return None, f"'{group.name}' is frozen: {group.reason}"
        stay = np.flatnonzero(~gone[:, 0]).tolist()
        if len(stay) < group.min_channels:
            return None, f"'{group.name}' has fewer channels than it needs"
        keep[group.name] = stay
    if (removed & ~covered).any():
        return None, "positions are gone that are no channels"
    return keep, ""


def _unlike(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    if wanted.keys() != found.keys():
        return "other tensors"
    for name, tensor in wanted.items():
        if tensor.shape != found[name].shape:
            return f"{name} has shape {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
        if not torch.allclose(tensor, found[name], rtol=1e-12, atol=0, equal_nan=True):
            return f"{name} holds other numbers"
        if type(tensor) is not type(found[name]) or tensor.requires_grad != found[name].requires_grad:
            return f"{name} {OTHER_KIND}"
    return ""


def _with_attributes(
    wanted: nn.Module, small: nn.Module, draws: Sequence[Any], keep: Mapping[str, Sequence[int]]
) -> Verdict:
    """The tensors are right: are the sizes that the modules name?"""
    other = ""
    for (path, one), (_, two) in zip(wanted.named_modules(), small.named_modules(), strict=True):
        for name, value in _sizes(one).items():
            if _sizes(two).get(name) != value:
                other = f"{path}.{name} is {_sizes(two).get(name)} instead of {value}"
    if not other:
        return Verdict(RIGHT, keep=keep)
    for inputs in draws:
        gap = _gap(_outputs(wanted, inputs), _outputs(small, inputs))
        if gap:
            return Verdict(WRONG, f"{other}, and {gap}", keep)
    return Verdict(STALE, other, keep)


def _sizes(module: nn.Module) -> dict[str, Any]:
    """Integers and tuples of integers among a module's attributes."""
    return {
        name: value
        for name, value in vars(module).items()
        if type(value) is int
        or (isinstance(value, tuple | list) and value and all(type(x) is int for x in value))
    }


def _by_numbers(
    model: nn.Module,
    small: nn.Module,
    graph: ChannelGraph,
    draws: Sequence[Any],
    removed: np.ndarray,
    places: Places,
    why: str,
) -> Verdict:
    """Wrong, unless one of the answers that need no whole channels is met."""
    references: dict[str, nn.Module | None] = {}
    if _meets_in_weights(graph):
        references["the original with zeros where numbers are gone"] = emptied(model, places)
        references["the original with columns of zeros"] = zeroed(model, graph, removed, [Role.CONSUMER])
    references["the original with zeros"] = zeroed(model, graph, removed, list(Role))
    references["the masked original"] = None
    tensors, gaps = named_tensors(model), []
    for how, silent in references.items():
        gap = ""
        for inputs in draws:
            if silent is None:
                wanted = list(run_reference(graph.wiring.evaluation, removed, tensors, inputs).leaves)
            else:
                wanted = _outputs(silent, inputs)
            gap = gap or _gap(wanted, _outputs(small, inputs))
        if silent is not None and not gap:
            wanted, found = _outputs(_training(silent), draws[0]), _outputs(_training(small), draws[0])
            gap = "" if isinstance(wanted, str) else _gap(wanted, found)
        if not gap:
            return Verdict(RIGHT, f"{why}, but right")
        gaps.append(f"not {how}: {gap}")
    return Verdict(WRONG, "; ".join([why, *gaps]))


def _meets_in_weights(graph: ChannelGraph) -> bool:
    """Whether channels meet nowhere but in weights that are tensors of the network."""
    evaluation = graph.wiring.evaluation
    recurrent = {item.node for item in evaluation.reads if item.place is not None and not item.tensor}
    return (
        not evaluation.statistics
        and not graph.wiring.rescales
        and all(item.tensor or item.node in recurrent for item in evaluation.reads)
        and not any("einsum" in node for node in recurrent)
    )


def zeroed(model: nn.Module, graph: ChannelGraph, removed: np.ndarray, roles: Sequence[Role]) -> nn.Module:
    """The original with zeros at removed positions of the dimensions that have certain roles."""
    silent = copy.deepcopy(model)
    tensors = named_tensors(silent)
    with torch.no_grad():
        for group in graph.groups:
            for member in group.members:
                tensor = tensors[member.tensor]
                gone = np.flatnonzero(removed[graph.span(member.tensor, member.dim)])
                if member.role in roles and tensor.is_floating_point():
                    tensor.index_fill_(member.dim, torch.as_tensor(gone), 0.0)
    return silent


def emptied(model: nn.Module, places: Places) -> nn.Module:
    """The original with zeros at all positions of parameters and buffers that a cut network lost.

    This needs no graph: whatever was cut by whatever rule, it computes what the smaller network must compute,
    where channels meet in weights alone.
    """
    silent = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in named_tensors(silent).items():
            for dim, index in enumerate(places.get(name) or ()):
                gone = np.setdiff1d(np.arange(tensor.shape[dim]), index)
                tensor.index_fill_(dim, torch.as_tensor(gone), 0.0)
    return silent


def _training(model: nn.Module) -> nn.Module:
    """A copy in training mode, without random numbers."""
    result = copy.deepcopy(model).train()
    for module in result.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return result


def _outputs(model: nn.Module, inputs: Any) -> list[Any] | str:
    args, kwargs = call_arguments(inputs)
    try:
        with torch.no_grad():
            return tree_leaves(model(*args, **kwargs))
    except Exception as error:  # noqa: BLE001 - a wrong cut may fail in any way
        return f"the forward pass fails ({type(error).__name__})"


def _gap(wanted: list[Any] | str, found: list[Any] | str) -> str:
    """How two results differ, in words; empty if they are equal."""
    if isinstance(wanted, str) or isinstance(found, str):
        return found if isinstance(found, str) else str(wanted)
    for one, two in zip(wanted, found, strict=True):
        if isinstance(one, Tensor) and one.numel():
            if not isinstance(two, Tensor) or one.shape != two.shape:
                return "another shape"
            size = float(one.abs().max()) or 1.0
            gap = float((one - two).abs().max()) / size
            if not gap <= LIMIT:
                return f"differs by {gap:.1e}"
    return ""
