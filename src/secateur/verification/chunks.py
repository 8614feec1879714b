"""Run any number of examples in chunks of the batch size that a network was traced with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from secateur._compat import tree_leaves, tree_map_only
from secateur.errors import UsageError
from secateur.graph.capture.program import ExampleInputs, call_arguments
from secateur.graph.checking.compare import Outputs
from secateur.graph.wiring import Pass


def chunks(forward: Pass, inputs: ExampleInputs) -> Iterator[tuple[ExampleInputs, int]]:
    """Split inputs into chunks of the traced batch size, each with its number of counted examples."""
    program = forward.program
    args, kwargs = call_arguments(inputs)
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    expected = program.input_shapes
    if [tuple(leaf.shape) for leaf in leaves] == expected:
        yield inputs, -1
        return
    sizes = {leaf.shape[0] for leaf in leaves if leaf.dim() > 0}
    rest = [tuple(leaf.shape[1:]) for leaf in leaves] == [shape[1:] for shape in expected]
    if len(sizes) != 1 or not rest or not all(shape[:1] == (program.batch,) for shape in expected):
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves)
        raise UsageError(
            f"inputs of shapes {shapes} do not fit the traced ones {', '.join(map(str, expected))}; "
            "only the batch size may differ"
        )
    count = sizes.pop()
    if count == 0:
        raise UsageError("the inputs contain no example; pass at least one")
    for start in range(0, count, program.batch):
        # The last chunk is padded with its last example, which is not counted.
        yield examples(inputs, start, program.batch), min(program.batch, count - start)


def batchwise(
    forward: Pass, inputs: ExampleInputs, run: Callable[[ExampleInputs], Outputs], *, whole: bool = False
) -> Outputs:
    """Run any number of examples in chunks of the traced batch size."""
    parts = list(chunks(forward, inputs))
    if whole or (len(parts) == 1 and parts[0][1] < 0):
        return run(inputs)
    results = [(run(part), count) for part, count in parts]
    first = results[0][0]
    leaves = tuple(
        torch.cat([item.leaves[number][:count] for item, count in results])
        if isinstance(leaf, Tensor)
        else leaf
        for number, leaf in enumerate(first.leaves)
    )
    return replace(first, leaves=leaves, rounded=any(item.rounded for item, _ in results))


def cycled(forward: Pass, inputs: ExampleInputs) -> ExampleInputs:
    """Repeat examples up to the number of the captured pass: a single example was doubled for it."""
    leaves = [leaf for leaf in tree_leaves(call_arguments(inputs)) if isinstance(leaf, Tensor)]
    same = [tuple(leaf.shape) for leaf in leaves] == forward.program.input_shapes
    return inputs if same else examples(inputs, 0, forward.program.batch)


def examples(inputs: ExampleInputs, start: int, count: int) -> ExampleInputs:
    """Select some examples of inputs; the last one is repeated if there are too few."""

    def picked(leaf: Tensor) -> Tensor:
        index = torch.arange(start, start + count).clamp(max=leaf.shape[0] - 1)
        return leaf.index_select(0, index.to(leaf.device)) if leaf.dim() else leaf

    args, kwargs = tree_map_only(Tensor, picked, call_arguments(inputs))
    picked_ones: ExampleInputs = args[0] if isinstance(inputs, Tensor) else kwargs or args
    return picked_ones
