"""Hook a network: call back when a forward pass begins, and for the inputs that hold scored channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateur._compat import tree_leaves
from secateur.criteria.layout import BranchOutput, ChannelLayout, ScoredInput
from secateur.errors import UsageError

OnForward = Callable[[int], None]
"""Called when a forward pass of the network begins, with the number of its examples."""

OnInput = Callable[[ScoredInput, Tensor], Tensor | None]
"""Called with the input of a module; what it returns replaces the input."""

OnOutput = Callable[[BranchOutput, Tensor, Tensor], Tensor | None]
"""Called with the output of a module and the value of a branch; what it returns replaces the output."""


def attach(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    layout: ChannelLayout,
    on_forward: OnForward,
    on_input: OnInput | None = None,
) -> list[RemovableHandle]:
    """Hook a network; remove the handles to leave it as it was.

    Args:
        model: the network itself, not a wrapper.
        modules: its modules by path.
        layout: the inputs to hook.
        on_forward: called at the beginning of each forward pass.
        on_input: called for each input that the layout names.

    Returns:
        The handles of the hooks.

    Raises:
        UsageError: ``on_input`` is given and no input can be hooked.
    """
    if on_input is not None and not layout.inputs and not layout.outputs:
        name, reason = next(iter(layout.hidden.items()))
        raise UsageError(f"no channel can be observed where it is read ({name!r}: {reason}); use 'magnitude'")
    handles = [model.register_forward_pre_hook(_forward_hook(on_forward), with_kwargs=True)]
    if on_input is not None:
        for scored in layout.inputs:
            hook = _input_hook(scored, on_input)
            handles.append(modules[scored.module].register_forward_pre_hook(hook, with_kwargs=True))
    return handles


def attach_outputs(
    modules: Mapping[str, nn.Module], layout: ChannelLayout, on_output: OnOutput
) -> list[RemovableHandle]:
    """Hook the modules that return the values of residual branches.

    Args:
        modules: those of the network by path.
        layout: the outputs to hook.
        on_output: called for each of them.

    Returns:
        The handles of the hooks.
    """
    return [
        modules[output.module].register_forward_hook(_output_hook(output, on_output), with_kwargs=True)
        for output in layout.outputs
    ]


def _output_hook(output: BranchOutput, on_output: OnOutput) -> Callable[..., Any]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        found = result if output.entry is None else result[output.entry]
        if not isinstance(found, Tensor):
            return None
        value = found
        if output.less is not None:
            less = args[output.less] if isinstance(output.less, int) else kwargs[output.less]
            value = found.detach() - less.detach()
        new = on_output(output, found, value)
        if new is None or output.entry is None:
            return new
        return type(result)(new if place == output.entry else one for place, one in enumerate(result))

    return hook


def _forward_hook(on_forward: OnForward) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = next(iter((*args, *kwargs.values())), None)
        if isinstance(first, list) and first and all(isinstance(item, Tensor) for item in first):
            on_forward(len(first))  # images of different sizes, as detectors of torchvision take them
            return
        leaves = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim)
        on_forward(next((leaf.shape[0] for leaf in leaves), 1))

    return hook


def _input_hook(scored: ScoredInput, on_input: OnInput) -> Callable[..., Any]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        values = (*args, *kwargs.values())
        old = next((value for value in values if isinstance(value, Tensor)), None)
        if old is None:
            return None
        _check(scored, old)
        new = on_input(scored, old)
        if new is None:
            return None
        # Self-attention takes one tensor three times, and checks whether it is the same object.
        swapped = {key: new if value is old else value for key, value in kwargs.items()}
        return tuple(new if value is old else value for value in args), swapped

    return hook


def _check(scored: ScoredInput, x: Tensor) -> None:
    """Refuse an input that does not hold the channels where the graph says, or has no examples."""
    if not -x.ndim <= scored.dim < x.ndim or x.shape[scored.dim] != len(scored.index):
        raise UsageError(
            f"module {scored.module!r} reads an input of shape {tuple(x.shape)}, but the channel graph "
            f"expects {len(scored.index)} positions in dimension {scored.dim}; "
            "trace the network again with inputs of the shape it is given now"
        )
    if scored.dim % x.ndim == 0:
        raise UsageError(
            f"module {scored.module!r} reads an input of shape {tuple(x.shape)} that holds channels in its "
            "first dimension, not examples; trace and score the network with batches of examples, such as "
            "inputs.unsqueeze(0)"
        )


def by_example(sums: Tensor, batch: int, scored: ScoredInput | BranchOutput) -> Tensor:
    """Sum the rows that belong to one example.

    A module may read several rows per example (windows, patches, frames folded into the first
    dimension); rows of one example lie next to each other.

    Args:
        sums: one row per entry of the input's first dimension, shape ``(rows, positions)``.
        batch: number of examples in the forward pass.
        scored: where the rows come from, for the message.

    Returns:
        Shape ``(batch, positions)``.

    Raises:
        UsageError: the examples do not have equally many rows.
    """
    rows = sums.shape[0]
    if rows == batch:
        return sums
    if batch == 0 or rows % batch:
        raise UsageError(
            f"module {scored.module!r} has {rows} rows in a forward pass over {batch} examples, so scores "
            "per example are not defined; keep the batch in the first dimension of the inputs"
        )
    return sums.view(batch, rows // batch, -1).sum(1)


def as_rows(x: Tensor, dim: int) -> Tensor:
    """View an input in the shape ``(rows, positions, values)``; its first dimension does not hold channels.

    >>> import torch
    >>> as_rows(torch.zeros(2, 3, 4, 4), 1).shape
    torch.Size([2, 3, 16])
    >>> as_rows(torch.zeros(2, 5, 3), -1).shape
    torch.Size([2, 3, 5])
    """
    return x.movedim(dim, 1).reshape(x.shape[0], x.shape[dim], -1)
