"""Capture a network as a program with a free batch size, from which every format is written."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from secateur.errors import ExportError, UsageError
from secateur.export.folding import folded
from secateur.graph.capture.program import ExampleInputs, call_arguments, doubled
from secateur.graph.substitutes import replacements_in
from secateur.outputs import parts_of
from secateur.untouched import untouched

_PLACES = ("stack_trace", "source_fn_stack")
"""Node metadata that names source files, and so folders of this machine."""


@dataclass(frozen=True)
class Exportable:
    """A network on the CPU in evaluation mode, with its inputs and outputs.

    Attributes:
        model: a copy.
        inputs: an example batch of at least two.
        arguments: names of its inputs, in order.
        outputs: number of tensors that it returns.
    """

    model: nn.Module
    inputs: tuple[Tensor, ...]
    arguments: tuple[str, ...]
    outputs: int

    @classmethod
    def of(cls, model: nn.Module, example_inputs: ExampleInputs) -> Exportable:
        """Copy a network and record its inputs and outputs.

        Args:
            model: left as it is.
            example_inputs: one tensor, a sequence of them, or a mapping of named ones; the batch is first in
                each.

        Raises:
            UsageError: the network takes or returns values that no file format holds.
        """
        positional, named = call_arguments(doubled(example_inputs))
        rest = {name: item for name, item in named.items() if item is None}
        names = tuple(name for name in named if name not in rest)
        positional = positional or tuple(named[name] for name in names)
        if not positional or not all(isinstance(item, Tensor) for item in positional):
            raise UsageError(
                "an exported network takes tensors: give one tensor, a tuple of them, or a dict of named ones"
            )
        sizes = {item.shape[0] if item.ndim else None for item in positional}
        if len(sizes) > 1 or None in sizes:
            raise UsageError("every input of an exported network has the batch as its first dimension")
        # A copy, since exporters keep references to parameters, which would prevent later cuts in place.
        model = copy.deepcopy(model).cpu().eval()
        model = _Named(model, names, rest) if named else model
        inputs = tuple(item.detach().to("cpu", copy=True) for item in positional)
        with untouched(model, weights=False), torch.inference_mode():  # code may keep what it computes
            returned = [leaf for leaf in parts_of(model(*inputs)).leaves if leaf is not None]
        if not returned or not all(isinstance(leaf, Tensor) for leaf in returned):
            kinds = ", ".join(
                sorted({type(leaf).__name__ for leaf in returned if not isinstance(leaf, Tensor)})
            )
            raise UsageError(
                f"an exported network returns tensors, but this one returns {kinds or 'nothing'}"
            )
        return cls(model, inputs, names or _names(len(inputs)), len(returned))

    @property
    def output_names(self) -> tuple[str, ...]:
        """List the names of its outputs in files."""
        return ("output",) if self.outputs == 1 else tuple(f"output_{n}" for n in range(self.outputs))

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """List the shapes of its inputs, without the batch."""
        return tuple(tuple(item.shape[1:]) for item in self.inputs)

    def program(self) -> ExportedProgram:
        """Capture the network as a program that takes any batch size.

        Raises:
            ExportError: it cannot be captured, or fixes the batch size.
        """
        return captured(self.model, self.inputs)

    def expected(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Run the network itself."""
        with untouched(self.model, weights=False), torch.inference_mode():
            return parts_of(self.model(*(item.clone() for item in inputs))).tensors


def captured(model: nn.Module, inputs: tuple[Tensor, ...]) -> ExportedProgram:
    """Capture a network as a program that takes any batch size, without references to its source code.

    Nothing of removed residual branches is left in it.

    Args:
        model: in evaluation mode.
        inputs: an example batch of at least two.

    Raises:
        ExportError: the network cannot be captured, or fixes the batch size.
    """
    batch = Dim("batch", min=1)
    shapes = tuple({0: batch} for _ in inputs)
    try:
        with warnings.catch_warnings(action="ignore"), untouched(model, weights=False):
            program = torch.export.export(_Positional(model), inputs, dynamic_shapes=(shapes,), strict=False)
            if replacements_in(model):
                program = folded(program)
    except Exception as error:  # networks fail in many ways
        raise ExportError(_explained(model, error)) from error
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            for key in _PLACES:
                node.meta.pop(key, None)
    return program


class _Positional(nn.Module):
    """Takes any number of inputs and returns tensors, so that their names do not depend on the network."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.network = model

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run the network."""
        output = self.network(*inputs)
        return output if isinstance(output, Tensor) else parts_of(output).tensors


class _Named(nn.Module):
    """Takes by position what a network takes by name."""

    def __init__(self, model: nn.Module, names: Sequence[str], rest: Mapping[str, None]) -> None:
        super().__init__()
        self.network = model
        self.names, self.rest = tuple(names), dict(rest)

    def forward(self, *inputs: Tensor) -> Any:
        """Run the network."""
        return self.network(**dict(zip(self.names, inputs, strict=True)), **self.rest)


def _names(count: int) -> tuple[str, ...]:
    return ("input",) if count == 1 else tuple(f"input_{number}" for number in range(count))


def _explained(model: nn.Module, error: Exception) -> str:
    text = " ".join(str(error).split())
    kind = type(model).__name__
    if "batch" in text and ("constraint" in text.lower() or "specializ" in text):
        return (
            f"{kind} fixes the batch size somewhere in its forward pass, so that no file could take another; "
            "take sizes from x.shape[0] there, or -1 in view and reshape"
        )
    return f"{kind} cannot be captured by torch.export: {type(error).__name__}: {text[:300]}"
