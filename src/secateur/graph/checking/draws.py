"""Draw random inputs of the kind that a network is called with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from secateur._compat import tree_flatten, tree_unflatten
from secateur.graph.capture.nodes import operator_name
from secateur.graph.capture.operators import COPIES
from secateur.graph.capture.program import ExampleInputs, Origin, Program, call_arguments

_PASSED_ON = COPIES | {"view", "reshape", "unsqueeze", "squeeze", "flatten", "expand"}
"""Operators after which indices are still the same indices."""


def random_inputs(program: Program, inputs: ExampleInputs, seed: int) -> ExampleInputs:
    """Draw inputs of the same shapes, dtypes and devices, with other values.

    Floating-point values get the mean and spread of the given ones (their range, if none is negative), or
    are normal where the given ones are all zero or NaN; those that hold infinities (masks) stay. Integers lie
    below the number of rows of the embedding that they index, or else within the given range. Non-float
    tensors with a single value are not changed, nor are sparse tensors.

    Args:
        program: the captured forward pass, which tells what indexes an embedding.
        inputs: what the network was traced with, or inputs of another batch size.
        seed: of the draw.

    Returns:
        Inputs in the same form.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = _rows(program)
    leaves, spec = tree_flatten(call_arguments(inputs))
    bounds = rows if len(rows) == len(leaves) else [None] * len(leaves)
    drawn = [
        _drawn(leaf, bound, generator) if isinstance(leaf, Tensor) else leaf
        for leaf, bound in zip(leaves, bounds, strict=True)
    ]
    return _form(inputs, tree_unflatten(drawn, spec))


def jittered(inputs: ExampleInputs, seed: int) -> ExampleInputs:
    """Move floating-point inputs by a few percent, for networks that refuse arbitrary ones.

    Integers that belong together, such as the corners of boxes, stay together: where there are any, the
    examples change places.
    """
    generator = torch.Generator().manual_seed(seed)
    leaves, spec = tree_flatten(call_arguments(inputs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.layout is torch.strided]
    batch = next((len(leaf) for leaf in tensors if leaf.dim()), 0)
    turned = any(not leaf.is_floating_point() for leaf in tensors)

    def moved(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.layout is not torch.strided:
            return leaf
        if turned and leaf.dim() and len(leaf) == batch:
            leaf = leaf.roll(seed, 0)
        if not leaf.is_floating_point():
            return leaf
        noise = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
        return (leaf.detach().double() * (1 + 0.03 * noise.to(leaf.device))).to(leaf.dtype)

    return _form(inputs, tree_unflatten([moved(leaf) for leaf in leaves], spec))


def _form(inputs: ExampleInputs, call: tuple[tuple[Any, ...], dict[str, Any]]) -> ExampleInputs:
    args, kwargs = call
    return args[0] if isinstance(inputs, Tensor) else kwargs or args


def _drawn(leaf: Tensor, rows: int | None, generator: torch.Generator) -> Tensor:
    if leaf.numel() == 0 or leaf.layout is not torch.strided:
        return leaf
    if leaf.is_complex():
        parts = torch.randn(*leaf.shape, 2, generator=generator, dtype=torch.float64)
        return torch.view_as_complex(parts).to(leaf)
    if leaf.is_floating_point():
        return _drawn_floats(leaf.detach().double(), generator).to(leaf)
    if leaf.dtype is torch.bool:
        order = torch.randperm(leaf.numel(), generator=generator).to(leaf.device)
        return leaf.flatten()[order].view(leaf.shape)
    low, high = (0, rows) if rows is not None else (int(leaf.min()), int(leaf.max()) + 1)
    if high - low <= 1:
        return leaf
    return torch.randint(low, high, leaf.shape, generator=generator).to(leaf)


def _drawn_floats(leaf: Tensor, generator: torch.Generator) -> Tensor:
    if torch.isinf(leaf).any():
        return leaf  # a mask of minus infinities
    known = leaf[~torch.isnan(leaf)]
    known = known if known.numel() else leaf.new_zeros(1)
    low, high = float(known.min()), float(known.max())
    if low == high == 0:
        return torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
    uniform = torch.rand(leaf.shape, generator=generator, dtype=torch.float64)
    if low == high:
        return low * (0.5 + uniform)
    if low >= 0:
        return low + uniform * (high - low)
    normal = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
    return float(known.mean()) + normal * float(known.std())


def _rows(program: Program) -> list[int | None]:
    """Find, for each input, how many rows the embedding has that it indexes."""
    return [
        min((rows for rows in _indexed(node)), default=None)
        for node in program.graph.nodes
        if node.op == "placeholder" and program.placeholders[node.name].origin is Origin.INPUT
    ]


def _indexed(node: Node) -> Iterator[int]:
    for user in node.users:
        name = operator_name(user)
        if name in ("embedding", "embedding_bag") and user.args[1] is node:
            weight = user.args[0]
            assert isinstance(weight, Node), "the weight of an embedding is a tensor"
            yield int(weight.meta["val"].shape[0])
        elif name in _PASSED_ON:
            yield from _indexed(user)
