"""Reconstruction: the consumers of cut channels are refitted by least squares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.graph import ChannelGraph
from secateur.graph.cutting import by_tensor, cut_tensor, named_tensors
from secateur.recovery.consumers import Consumer, find_consumers
from secateur.recovery.gather import blocks, positions
from secateur.recovery.recalibrate import recalibrate as recalibrate_norms
from secateur.recovery.run import Run
from secateur.recovery.script import Script, kept_mask, write_script
from secateur.responses import Fit, Moments, fit_dual, fit_moments

if TYPE_CHECKING:
    from secateur.plan import PruningPlan


@dataclass(frozen=True)
class Repair:
    """What refitting one consumer did.

    Attributes:
        module: path of the consumer.
        error_before: share of the energy of the original responses that was missed before, the
            best constant granted.
        error: share that is missed now.
    """

    module: str
    error_before: float
    error: float


@dataclass(frozen=True)
class Options:
    """How consumers are refitted; see :func:`reconstruct`."""

    ridge: float
    rows_per_unknown: int
    compensate: bool
    behind: bool


def reconstruct(
    model: nn.Module,
    pruned: nn.Module,
    plan: PruningPlan,
    batches: Iterable[Any],
    *,
    ridge: float = 1e-3,
    rows_per_unknown: int = 20,
    compensate: bool = True,
    behind: bool = True,
    recalibrate: bool = False,
    max_examples: int | None = None,
) -> tuple[Repair, ...]:
    """Refits the consumers of cut channels so that they respond as those of the original network."""
    graph = plan.graph
    data = list(batches)
    script = write_script(model, graph, data, max_examples)
    removed = graph.after(plan).removed
    whole = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
    laid = laid_out(whole, named_tensors(pruned), plan)
    original, small = Run(script, graph.removed, whole), Run(script, removed, laid)
    options = Options(ridge, rows_per_unknown, compensate, behind)
    repairs = []
    started = False
    with torch.no_grad():
        for consumer in find_consumers(script):
            cut = bool(removed[consumer.labels].any())
            if not cut and not (behind and started):
                continue
            started = True
            original.advance(consumer.step + 1)
            small.advance(consumer.step)
            fit = _refit(consumer, graph, original, small, laid, options)
            repairs.append(Repair(consumer.module, fit.error_before, fit.error))
        _write(pruned, laid, plan)
    if recalibrate:
        recalibrate_norms(pruned, data)
    return tuple(repairs)


def laid_out(whole: dict[str, Tensor], pruned: dict[str, Tensor], plan: PruningPlan) -> dict[str, Tensor]:
    """Tensors of the cut network in the sizes of the original, whose values fill the gaps."""
    kept = by_tensor(plan.kept_slots)
    result = {}
    for name, tensor in pruned.items():
        if name not in kept:
            result[name] = tensor.detach().clone()
            continue
        wide = whole[name].clone()
        wide[_grid(kept[name], tuple(wide.shape))] = tensor.detach()
        result[name] = wide
    return result


def _grid(kept: dict[int, Any], shape: tuple[int, ...]) -> tuple[Any, ...]:
    return np.ix_(*(kept.get(dim, np.arange(size)) for dim, size in enumerate(shape)))


def _write(pruned: nn.Module, laid: dict[str, Tensor], plan: PruningPlan) -> None:
    kept = by_tensor(plan.kept_slots)
    for name, tensor in named_tensors(pruned).items():
        tensor.copy_(cut_tensor(laid[name], kept.get(name, {})))


def _refit(
    consumer: Consumer,
    graph: ChannelGraph,
    original: Run,
    small: Run,
    laid: dict[str, Tensor],
    options: Options,
) -> Fit:
    removed = small.removed
    window, weight = consumer.window, laid[consumer.weight]
    inputs = torch.from_numpy(np.flatnonzero(~removed[consumer.labels]))
    outputs = kept_mask(graph, removed, consumer.weight, 0).nonzero()[:, 0]
    columns = inputs[: len(inputs) // window.groups]
    old = weight.index_select(0, outputs).index_select(1, columns)
    flat = old.reshape(window.groups, len(outputs) // window.groups, -1)
    unknowns = flat.shape[2]
    script = small.script
    total = script.examples * window.positions(tuple(consumer.source.meta["val"].shape))
    share = min(1.0, max(4096, options.rows_per_unknown * unknowns) / total)
    pairs = _pairs(consumer, original, small, inputs, outputs, laid, share, options.compensate)
    if total < unknowns:
        blocks = list(pairs)
        x, y = (torch.cat([block[item] for block in blocks], 1) for item in (0, 1))
        fit = fit_dual(x, y, flat, options.ridge, constant=consumer.constant)
    else:
        moments = Moments()
        for x, y in pairs:
            moments.add(x, y)
        fit = fit_moments(moments, flat, options.ridge, constant=consumer.constant)
    weight[torch.meshgrid(outputs, columns, indexing="ij")] = fit.weight.reshape(old.shape).to(weight.dtype)
    constant = fit.constant.reshape(-1)
    if consumer.bias is not None:
        laid[consumer.bias][outputs] = constant.to(weight.dtype)
    elif consumer.mean is not None:
        laid[consumer.mean][outputs] -= constant.to(weight.dtype)
    return fit


def _pairs(
    consumer: Consumer,
    original: Run,
    small: Run,
    inputs: Tensor,
    outputs: Tensor,
    laid: dict[str, Tensor],
    share: float,
    compensate: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Patches of the cut network and responses wanted, block by block."""
    script: Script = small.script
    window = consumer.window
    generator = torch.Generator().manual_seed(0)
    for number, portion in enumerate(script.portions):
        x = script.trimmed(small.value(number, consumer.source), portion).index_select(consumer.dim, inputs)
        y = script.trimmed(original.value(number, consumer.node), portion)
        if compensate:
            y = y + _compensation(consumer, original, small, number, laid)[: len(y)]
        y = y.index_select(consumer.dim, outputs)
        chosen = positions(window.positions(tuple(x.shape)), share, generator)
        yield from blocks(window, x, y, chosen)


def _compensation(
    consumer: Consumer, original: Run, small: Run, number: int, laid: dict[str, Tensor]
) -> Tensor:
    meeting = consumer.meeting
    if meeting is None:
        return torch.zeros(1)
    try:
        gap = original.value(number, meeting.other) - small.value(number, meeting.other)
    except KeyError:
        return torch.zeros(1)
    if meeting.norm is None:
        return gap
    scale_name, variance_name = meeting.norm
    deviation = (laid[variance_name] + meeting.epsilon).sqrt()
    scale = laid[scale_name] if scale_name is not None else torch.ones_like(deviation)
    factor = torch.where(scale.abs() > 1e-3, deviation / scale, 0.0)
    return gap * factor.reshape(1, -1, *[1] * (gap.dim() - 2))
