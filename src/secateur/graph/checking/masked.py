"""Run the masked original: the captured program with removed channels and residual branches held at zero.

This is the reference for every cut. It runs the original operators on tensors of the original
sizes. What changes: each operator that contracts over channels sees zeros where a channel was removed, each
operator that picks channels by value sees them last, each operator that takes a statistic over channels sees
only the kept ones, and where the value of a removed branch is added, zeros are added.
Statistics of weights are no exception to the first rule: they are taken over whole weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from secateur._compat import tree_leaves
from secateur.graph.capture.nodes import operator_name
from secateur.graph.capture.operators import CHANNEL_STATISTICS
from secateur.graph.capture.program import ExampleInputs, Origin, Program, call_arguments, written_arguments
from secateur.graph.labels import BoolArray, Labels, Value
from secateur.graph.propagation.findings import Read, Statistic
from secateur.graph.wiring import Pass


def run_masked(
    forward: Pass,
    removed: BoolArray,
    tensors: Mapping[str, Tensor],
    inputs: ExampleInputs,
    written: dict[str, Tensor] | None = None,
) -> tuple[Any, ...]:
    """Run a captured forward pass with some channels and residual branches masked.

    Args:
        forward: the evaluation-mode or the training-mode pass.
        removed: per slot, whether its channel or its branch is masked.
        tensors: parameters and buffers by name, in the original shapes; not changed. Those of masked branches
            may be missing.
        inputs: inputs of the shapes that the pass was captured with; not changed.
        written: gets the buffers that the pass writes to, as they are after it.

    Returns:
        The flat outputs of the network.
    """
    values = flat_arguments(forward.program, tensors, inputs, {} if written is None else written)
    with torch.no_grad():
        return tuple(MaskedInterpreter(forward, removed).run(*values, enable_io_processing=False))


def flat_arguments(
    program: Program, tensors: Mapping[str, Tensor], inputs: ExampleInputs, written: dict[str, Tensor]
) -> list[Any]:
    """Line up what a program is called with: tensors, constants and inputs.

    Args:
        program: the captured forward pass.
        tensors: parameters and buffers by name; those that the program writes to are copied.
        inputs: of the network; copied.
        written: gets the copies of the tensors that the program writes to, by name.

    Returns:
        One value for each placeholder.
    """
    leaves = tree_leaves(call_arguments(inputs))
    program.refuse_other_branch(leaves)
    flat = iter(leaves)
    values: list[Any] = []
    for node in program.graph.nodes:
        if node.op != "placeholder":
            continue
        item = program.placeholders[node.name]
        if item.origin is Origin.TENSOR:
            # No ``detach()``: in float64 mode it would convert every weight here, all at once.
            data = tensors.get(item.name)
            if data is not None and item.name in program.written:
                data = written.setdefault(item.name, data.clone())
            values.append(data)
        elif item.origin is Origin.CONSTANT:
            values.append(_own(program.constants[item.name]))
        else:
            value = next(flat)
            values.append(value.clone() if isinstance(value, Tensor) else value)
    return values


def _fixed(program: Program) -> set[str]:
    """Find operators that no input reaches; normalisation layers are applied to values, also learned ones."""
    reached = {name for name, item in program.placeholders.items() if item.origin is Origin.INPUT}
    for node in program.graph.nodes:
        if node.name not in reached and (
            any(source.name in reached for source in node.all_input_nodes)
            or operator_name(node) in CHANNEL_STATISTICS
        ):
            reached.add(node.name)
    return {node.name for node in program.graph.nodes if node.name not in reached}


def _own(constant: Any) -> Any:
    """Copy a constant that the program may write to: a tensor, or a generator of random numbers."""
    if isinstance(constant, torch.Generator):  # seeded as the network's own is for a check
        return constant.clone_state().manual_seed(0)
    return constant.clone() if isinstance(constant, Tensor) else constant


def _number(fill: float, dtype: torch.dtype) -> float:
    """Return what a removed channel reads as; whole numbers have a smallest and a largest one."""
    if math.isfinite(fill) or dtype.is_floating_point:
        return fill
    return torch.iinfo(dtype).min if fill < 0 else torch.iinfo(dtype).max


def _absent(forward: Pass, removed: BoolArray) -> tuple[dict[str, int], set[str]]:
    """Find the sums that lose an operand with a removed branch, and the operators that compute nothing else.

    Args:
        forward: the pass.
        removed: per slot, whether its channel or its branch is masked.

    Returns:
        The position of the lost operand by the name of the operator that adds, and names of operators.
    """
    lost: dict[str, int] = {}
    skipped: set[str] = set()
    empty: set[str] = set()  # sums of removed branches, of which nothing is left

    def lose(node: str, argument: int) -> None:
        if lost.setdefault(node, argument) != argument:
            empty.add(node)

    for operand in forward.operands:
        if removed[operand.slot]:
            skipped |= operand.own
            lose(operand.node, operand.argument)
    for node in forward.program.graph.nodes if empty else ():
        if node.name in empty:
            for user in node.users:
                lose(user.name, user.args.index(node))
    return lost, skipped | empty


class MaskedInterpreter(Interpreter):
    """Run a program operator by operator, and mask what contracting operators see.

    Args:
        forward: the program, with what is known of its operators.
        removed: per slot, whether its channel or its residual branch is masked.
    """

    def __init__(self, forward: Pass, removed: BoolArray) -> None:
        super().__init__(forward.program.module)
        self._removed = removed
        self._reads: dict[str, list[Read]] = {}
        for read in forward.reads:
            if removed[read.labels].any():
                self._reads.setdefault(read.node, []).append(read)
        self._flags = forward.flags
        self._absent, self._skipped = _absent(forward, removed)
        # What no input reaches is a weight, whatever the rules say of it.
        fixed = _fixed(forward.program)
        self._statistics = {item.node: item for item in forward.statistics if item.node not in fixed}

    def run_node(self, n: Node) -> Any:
        """Run one operator on masked arguments; those that compute only a removed branch are left out."""
        if n.name in self._skipped:
            return None
        absent = self._absent.get(n.name)
        reads, statistic = self._reads.get(n.name, ()), self._statistics.get(n.name)
        flag = self._flags.get(n.name)
        if not reads and statistic is None and flag is None and absent is None:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        changed = list(args)
        if absent is not None:
            changed[absent] = torch.zeros_like(changed[1 - absent])
        if flag is not None:
            defaults = [argument.default_value for argument in n.target._schema.arguments]  # type: ignore[union-attr]
            changed += defaults[len(changed) : flag + 1]
            changed[flag] = True
        for read in reads:
            changed[read.argument] = self._masked_argument(changed[read.argument], read)
        if statistic is None:
            return self.call_function(n.target, tuple(changed), kwargs)
        return self._among_kept(n, statistic, changed, kwargs)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call an operator; values may lie in memory in another order than where the program was captured."""
        if target is torch.ops.aten.view.default:
            target = torch.ops.aten.reshape.default
        return super().call_function(target, args, kwargs)

    def _masked_argument(self, value: Any, read: Read) -> Any:
        if read.place is not None:
            item = self._masked_value(value[read.place], read)
            return [*value[: read.place], item, *value[read.place + 1 :]]
        return self._masked_value(value, read)

    def _masked_value(self, value: Tensor, read: Read) -> Tensor:
        shape = [1] * value.dim()
        shape[read.dim] = -1
        keep = torch.from_numpy(~self._removed[read.labels]).to(value.device)
        return torch.where(keep.view(shape), value, value.new_full((), _number(read.fill, value.dtype)))

    def _among_kept(self, node: Node, item: Statistic, args: list[Any], kwargs: dict[str, Any]) -> Tensor:
        written = args[0] if next(written_arguments(node), None) is not None else None
        for position, value in item.arguments:
            args[position] = self._kept(args[position], value)
        for position, place, labels in item.sizes:
            count = int((~self._removed[labels]).sum())
            if place is None:
                args[position] = count
            else:
                args[position] = [*args[position][:place], count, *args[position][place + 1 :]]
        for position, labels, power in item.factors:
            args[position] = args[position] * float((~self._removed[labels]).mean()) ** power
        result: Tensor = self.call_function(node.target, tuple(args), kwargs)
        self._refuse_other_shape(node, result, item.result)
        scattered = self._scattered(result, item.result)
        return scattered if written is None else written.copy_(scattered)

    def _refuse_other_shape(self, node: Node, result: Any, value: Value) -> None:
        """Refuse a result that lost other channels than its labels say: it is no statistic."""
        if not value.shape or not isinstance(result, Tensor):
            return
        # Not the shape of the value, since the pass may be of another number of examples than the traced one.
        expected = list(node.meta["val"].shape)
        for dim, index in self._indices(value.labels):
            expected[dim] = len(index)
        if list(result.shape) != expected:
            raise RuntimeError(
                f"{node.target} on the kept channels gives the shape {tuple(result.shape)}, "
                f"where its labels say {tuple(expected)}"
            )

    def _kept(self, tensor: Tensor, value: Value) -> Tensor:
        for dim, index in self._indices(value.labels):
            tensor = tensor.index_select(dim, index.to(tensor.device))
        return tensor

    def _scattered(self, tensor: Tensor, value: Value) -> Tensor:
        for dim, index in self._indices(value.labels):
            shape = list(tensor.shape)
            shape[dim] = value.shape[dim]
            tensor = tensor.new_zeros(shape).index_copy(dim, index.to(tensor.device), tensor)
        return tensor

    def _indices(self, labels: tuple[Labels, ...]) -> list[tuple[int, Tensor]]:
        """List, for each dimension that loses channels, the positions that stay."""
        found = []
        for dim, vector in enumerate(labels):
            if vector is not None and self._removed[vector].any():
                found.append((dim, torch.from_numpy(np.flatnonzero(~self._removed[vector]))))
        return found
