"""Divide the examples of batches into chunks of one size, which run through a network one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur._compat import tree_flatten
from secateur.batches import split_batch
from secateur.errors import UsageError
from secateur.graph.capture.program import call_arguments


@dataclass(frozen=True)
class Chunk:
    """Examples that run together.

    Attributes:
        leaves: the input tensors (and other arguments), flat, padded to the chunk size.
        count: number of examples; the rows after them are padding.
    """

    leaves: tuple[Any, ...]
    count: int


def count_examples(leaves: Sequence[Any]) -> int:
    """Count the examples of flat arguments."""
    return next(len(leaf) for leaf in leaves if isinstance(leaf, Tensor))


def chunks_of(leaves: Sequence[Any], size: int) -> tuple[Chunk, ...]:
    """Divide examples into chunks; the last one is padded with the last example."""
    total, chunks = count_examples(leaves), []
    for start in range(0, total, size):
        index = torch.arange(start, start + size).clamp(max=total - 1)
        part = tuple(
            leaf.index_select(0, index.to(leaf.device)) if isinstance(leaf, Tensor) else leaf
            for leaf in leaves
        )
        chunks.append(Chunk(part, min(size, total - start)))
    return tuple(chunks)


def gather(
    batches: Iterable[Any], arguments: Sequence[str], device: torch.device, max_examples: int | None
) -> tuple[list[Any], Any]:
    """Join the inputs of batches.

    Args:
        batches: inputs, pairs of inputs and targets, or mappings of named arguments.
        arguments: names of those that the network was traced with, if it takes named ones.
        device: where the inputs go.
        max_examples: how many examples to use; all if not given.

    Returns:
        Flat arguments, and the structure in which the network takes them.
    """
    parts: list[list[Any]] = []
    spec, count = None, 0
    for batch in batches:
        inputs, _ = split_batch(batch)
        flat, spec = tree_flatten(call_arguments(_traced(inputs, arguments)))
        tensors = [leaf for leaf in flat if isinstance(leaf, Tensor)]
        if not tensors or len({leaf.shape[:1] for leaf in tensors}) != 1:
            raise UsageError("a batch needs tensors with the examples in their first dimension")
        if parts and _shapes(flat) != _shapes(parts[0]):
            raise UsageError(
                f"batches have examples of different shapes ({_shapes(parts[0])} and {_shapes(flat)}); pass "
                "batches of one shape, such as sequences padded to one length"
            )
        parts.append([leaf.to(device) if isinstance(leaf, Tensor) else leaf for leaf in flat])
        count += tensors[0].shape[0]
        if max_examples is not None and count >= max_examples:
            break
    if not count:
        raise UsageError("there are no examples; pass batches with at least one")
    joined = [
        torch.cat(items)[:max_examples] if isinstance(items[0], Tensor) else items[0]
        for items in map(list, zip(*parts, strict=True))
    ]
    return joined, spec


def _traced(inputs: Any, arguments: Sequence[str]) -> Any:
    """Select the named arguments that a network was traced with, in the order in which it took them."""
    if not isinstance(inputs, Mapping) or not arguments:
        return inputs
    missing = [name for name in arguments if name not in inputs]
    if missing:
        raise UsageError(
            f"a batch with the keys {', '.join(map(str, inputs))} has no '{missing[0]}', which the network "
            "was traced with"
        )
    return {name: inputs[name] for name in arguments}


def _shapes(leaves: Sequence[Any]) -> list[tuple[int, ...]]:
    """List the shapes of the tensors among some arguments, without the examples."""
    return [tuple(leaf.shape[1:]) for leaf in leaves if isinstance(leaf, Tensor)]
