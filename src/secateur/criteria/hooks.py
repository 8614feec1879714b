"""Hooks: being told when a forward pass begins and what each reader reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateur._compat import tree_leaves
from secateur.criteria.layout import Layout, Read
from secateur.errors import UsageError

OnForward = Callable[[int], None]
"""Called when a forward pass of the network begins, with the number of its examples."""

OnRead = Callable[[Read, Tensor], Tensor | None]
"""Called with what a reader is about to read; what it returns is read in its place."""


def attach(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    layout: Layout,
    on_forward: OnForward,
    on_read: OnRead | None = None,
) -> list[RemovableHandle]:
    """Hooks a network; remove the handles to leave it as it was.

    Args:
        model: the network itself, not a wrapper.
        modules: its modules by path.
        layout: the reads to be told of.
        on_forward: called at the beginning of each forward pass.
        on_read: called at each read that the layout names.

    Returns:
        The handles of the hooks.

    Raises:
        UsageError: if reads are asked for and none can be watched.
    """
    if on_read is not None and not layout.reads:
        name, reason = next(iter(layout.hidden.items()))
        raise UsageError(f"no channel can be watched where it is read ({name!r}: {reason}); use 'magnitude'")
    handles = [model.register_forward_pre_hook(_begin(on_forward), with_kwargs=True)]
    if on_read is not None:
        for read in layout.reads:
            hook = _reading(read, on_read)
            handles.append(modules[read.module].register_forward_pre_hook(hook, with_kwargs=True))
    return handles


def _begin(on_forward: OnForward) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        leaves = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim)
        on_forward(next((leaf.shape[0] for leaf in leaves), 1))

    return hook


def _reading(read: Read, on_read: OnRead) -> Callable[..., Any]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        values = (*args, *kwargs.values())
        old = next((value for value in values if isinstance(value, Tensor)), None)
        if old is None:
            return None
        _check(read, old)
        new = on_read(read, old)
        if new is None:
            return None
        # Self-attention is given one tensor three times, and looks whether it is the same one.
        swapped = {key: new if value is old else value for key, value in kwargs.items()}
        return tuple(new if value is old else value for value in args), swapped

    return hook


def _check(read: Read, x: Tensor) -> None:
    """Refuses an input that does not hold the channels where the graph says."""
    if x.ndim < 2 or not -x.ndim <= read.dim < x.ndim or x.shape[read.dim] != len(read.index):
        raise UsageError(
            f"module {read.module!r} reads an input of shape {tuple(x.shape)}, but the channel graph "
            f"expects {len(read.index)} positions in dimension {read.dim}; "
            "trace the network again with inputs of the shape it is given now"
        )


def by_example(sums: Tensor, batch: int, read: Read) -> Tensor:
    """Adds up the rows that belong to one example.

    A module may see several rows per example (windows, patches, frames folded into the first
    dimension); rows of one example lie next to each other.

    Args:
        sums: one row per entry of the input's first dimension, shape ``(rows, positions)``.
        batch: number of examples in the forward pass.
        read: where the rows come from, for the message.

    Returns:
        Shape ``(batch, positions)``.

    Raises:
        UsageError: if the rows cannot be shared out equally.
    """
    rows = sums.shape[0]
    if rows == batch:
        return sums
    if batch == 0 or rows % batch:
        raise UsageError(
            f"module {read.module!r} reads {rows} rows in a forward pass over {batch} examples, so scores "
            "per example are not defined; keep the batch in the first dimension of the inputs"
        )
    return sums.view(batch, rows // batch, -1).sum(1)


def as_rows(x: Tensor, dim: int) -> Tensor:
    """A view of shape ``(rows, positions, values)`` of what a reader reads.

    >>> import torch
    >>> as_rows(torch.zeros(2, 3, 4, 4), 1).shape
    torch.Size([2, 3, 16])
    >>> as_rows(torch.zeros(2, 5, 3), -1).shape
    torch.Size([2, 3, 5])
    """
    return x.movedim(dim, 1).reshape(x.shape[0], x.shape[dim], -1)
