"""Match what the code called with the operators of the captured program, to learn where sizes come from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.fx import Node

from secateur.graph.capture.nodes import module_path, operator_name
from secateur.graph.capture.program import Program
from secateur.graph.propagation.size_source import Computed, FromAttribute, FromTensor, Power, Sizes, Source
from secateur.graph.sizes.recording import Call, Made, Observation, normal_name
from secateur.graph.sizes.traced import Proportional, Size


def sizes_of(seen: Observation | None, program: Program) -> Sizes:
    """Find out where the sizes in a program come from.

    Args:
        seen: what was recorded when the network ran on shapes, in the mode of the program.
        program: the captured forward pass.

    Returns:
        The sources of sizes, for the operators for which they are known.
    """
    if seen is None:
        return {}
    nodes = nodes_of(seen, program)
    sizes = {
        name: tuple(
            _resolved(size.source, nodes) if isinstance(size, Size | Proportional) else None
            for size in call.sizes
        )
        for call, name in nodes.items()
        if call.sizes
    }
    pairs = [(_resolved(one, nodes), _resolved(other, nodes)) for one, other in seen.equal]
    return sizes | {"": tuple(Computed("eq", *pair) for pair in dict.fromkeys(pairs) if None not in pair)}  # type: ignore[arg-type]


def nodes_of(seen: Observation, program: Program) -> Mapping[Call, str]:
    """Match calls with the operators of the program: same module, same name, same shape, same order."""
    made: dict[tuple[str, str, tuple[int, ...]], list[Call]] = defaultdict(list)
    found: dict[tuple[str, str, tuple[int, ...]], list[str]] = defaultdict(list)
    for call in seen.calls:
        made[call.key].append(call)
    for node in program.graph.nodes:
        key = _key(node)
        if key is not None:
            found[key].append(node.name)
    return {
        call: name
        for key, names in found.items()
        if len(made[key]) == len(names)
        for call, name in zip(made[key], names, strict=True)
    }


def _key(node: Node) -> tuple[str, str, tuple[int, ...]] | None:
    result = node.meta.get("val")
    first = result[0] if isinstance(result, Sequence) and result else result
    if node.op != "call_function" or not isinstance(first, Tensor):
        return None
    name = operator_name(node)
    return module_path(node), normal_name(name), tuple(first.shape)


def _resolved(source: Any, nodes: Mapping[Call, str]) -> Source | None:
    """Replace calls in a source by operators of the program; ``None`` where that is not possible."""
    if isinstance(source, FromAttribute):
        return source
    if isinstance(source, Power):
        base = _resolved(source.base, nodes)
        return None if base is None else Power(base, source.power)
    if isinstance(source, Made):
        if isinstance(source.maker, str):
            return FromTensor("", source.maker, source.place, source.dim)
        node = nodes.get(source.maker)
        return None if node is None else FromTensor(node, "", source.place, source.dim)
    if isinstance(source, Computed):
        parts = [
            item if type(item) is int else _resolved(item, nodes) for item in (source.left, source.right)
        ]
        if parts[0] is None or parts[1] is None:
            return None
        return Computed(source.operator, parts[0], parts[1])
    return None
