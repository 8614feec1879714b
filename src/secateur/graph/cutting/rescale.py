"""Let the length of a normalised weight follow a cut, so that the weight itself stays what it was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from secateur.graph.cutting.tensors import cut_tensor
from secateur.graph.groups import IntArray
from secateur.graph.propagation.findings import Rescale


def rescaled(
    rescales: Iterable[Rescale],
    tensors: Mapping[str, Tensor],
    kept: Mapping[str, Mapping[int, IntArray]],
) -> dict[str, Tensor]:
    """Compute the lengths of normalised weights after a cut.

    Weight normalisation (Salimans and Kingma 2016, arXiv 1602.07868, equation 2) computes
    ``w = g * v / norm(v)``. Removing entries of ``v`` makes its norm smaller and ``w`` larger; ``g`` times
    the ratio of the norms undoes that exactly.

    Args:
        rescales: the normalised weights.
        tensors: parameters and buffers by name, before the cut.
        kept: for each tensor that is cut, the positions that stay, by dimension.

    Returns:
        New lengths by name, cut already; only of weights whose norm changes.
    """
    result = {}
    for item in rescales:
        cut = {dim: index for dim, index in kept.get(item.direction, {}).items() if dim != item.dim}
        if not cut:
            continue
        length = cut_tensor(tensors[item.length], kept.get(item.length, {}))
        before = _norm(
            cut_tensor(tensors[item.direction], {} if item.dim is None else _only(kept, item)), item
        )
        after = _norm(cut_tensor(tensors[item.direction], kept[item.direction]), item)
        ratio = torch.where(before > 0, after / before, torch.ones_like(before))
        result[item.length] = (length.double() * ratio.view(length.shape)).to(length.dtype)
    return result


def _only(kept: Mapping[str, Mapping[int, IntArray]], item: Rescale) -> dict[int, IntArray]:
    """Select the cut of a direction along the dimension that has a norm for each index."""
    return {dim: index for dim, index in kept[item.direction].items() if dim == item.dim}


def _norm(direction: Tensor, item: Rescale) -> Tensor:
    rest = [dim for dim in range(direction.dim()) if dim != item.dim]
    norm: Tensor = torch.linalg.vector_norm(direction.double(), dim=rest)
    return norm
