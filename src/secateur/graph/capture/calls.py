"""Record with which arguments modules are called, and what they return."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur._compat import tree_map_only
from secateur.graph.capture.program import ExampleInputs, call_arguments, mode_of
from secateur.untouched import untouched

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Attributes:
        arguments: shapes of the tensors among the arguments, by position or name.
        result: shape of the first tensor that was returned; ``None`` if it was not found.
        entry: where a tuple was returned, the place of that tensor in it, and the length of the tuple.
    """

    arguments: Mapping[int | str, Shape]
    result: Shape | None
    entry: tuple[int, int] | None


def observe_calls(
    model: nn.Module, inputs: ExampleInputs, paths: Collection[str]
) -> dict[str, tuple[Call, ...]]:
    """Run a network in evaluation mode and record the calls of some modules.

    Args:
        model: the network; not changed.
        inputs: what to call it with.
        paths: of the modules.

    Returns:
        The calls of each module that is called, by its path.
    """
    calls: dict[str, list[Call]] = {}

    def watch(path: str, module: nn.Module) -> None:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            calls.setdefault(path, []).append(_call(args, kwargs, output))

        module.register_forward_hook(hook, with_kwargs=True)

    with (
        untouched(model, weights=False) as noted,
        mode_of(model, training=False),
        torch.no_grad(),
        torch.compiler.set_stance("force_eager"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        noted.seed_generators()
        for path, module in model.named_modules():
            if path in paths:
                watch(path, module)
        args, kwargs = tree_map_only(Tensor, torch.clone, call_arguments(inputs))
        model(*args, **kwargs)
    return {path: tuple(found) for path, found in calls.items()}


def _call(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Call:
    given: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    shapes = {key: tuple(item.shape) for key, item in given if isinstance(item, Tensor)}
    if isinstance(output, Tensor):
        return Call(shapes, tuple(output.shape), None)
    if type(output) is tuple:
        for place, item in enumerate(output):
            if isinstance(item, Tensor):
                return Call(shapes, tuple(item.shape), (place, len(output)))
    return Call(shapes, None, None)
