"""Describe factors that code makes from a width, such as ``x.shape[-1] ** -0.5``.

Such a factor changes when channels are removed. The cut network then differs from the original with
masked channels, so the channels must stay. There is one exception: a sum over the channels that is
multiplied so that the number of channels drops out is a mean, and a mean is taken over the kept ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch.fx import Node

from secateur.graph.capture.nodes import operator_name
from secateur.graph.groups import IntArray
from secateur.graph.propagation.findings import Findings
from secateur.graph.propagation.size_source import Source

_PASSED_ON = {"clamp", "clamp_min", "abs", "contiguous", "to", "_to_copy", "unsqueeze", "squeeze", "neg"}


@dataclass(frozen=True)
class Growth:
    """How a statistic over channels grows with their number.

    Attributes:
        labels: the channels.
        degree: 1 for a sum, a half for a length, 0 for a mean.
    """

    labels: IntArray
    degree: float


@dataclass(frozen=True)
class Factor:
    """A number by which an operator multiplies or divides.

    Attributes:
        node: the operator.
        source: the size that the factor is made from.
        power: the number is proportional to this power of the size.
        divides: whether the operator divides by it.
        growth: how the other operand grows, if it is a statistic over channels.
        shape: of the result.
        place: the operator and its module, for messages.
    """

    node: str
    source: Source
    power: float
    divides: bool
    growth: Growth | None
    shape: tuple[int, ...]
    place: str


def growth_of(node: object, findings: Findings) -> Growth | None:
    """Follow a value back to the statistic over channels that it was made of.

    Args:
        node: what made the value.
        findings: what propagation found so far.

    Returns:
        The channels and the degree; ``None`` if the value is not a function of one such statistic.
    """
    scale = 1.0
    while isinstance(node, Node) and node.op == "call_function":
        name = operator_name(node)
        statistic = next((item for item in findings.statistics if item.node == node.name), None)
        if statistic is not None and statistic.arguments:
            vectors = [labels for labels in statistic.arguments[0][1].labels if labels is not None]
            degree = _degree(name, node.args)
            return None if degree is None or len(vectors) != 1 else Growth(vectors[0], degree * scale)
        if name in ("sqrt", "rsqrt"):
            scale *= 0.5 if name == "sqrt" else -0.5
        elif name == "pow" and isinstance(node.args[1], int | float):
            scale *= node.args[1]
        elif name not in _PASSED_ON or len(node.all_input_nodes) != 1:
            return None
        node = node.args[0]
    return None


def _degree(name: str, args: Sequence[object]) -> float | None:
    if name in ("linalg_vector_norm", "norm"):
        order = args[1] if len(args) > 1 else 2
        return 1 / order if isinstance(order, int | float) and order > 0 else None
    known: Mapping[str, float] = {"sum": 1.0, "mean": 0.0}
    return known.get(name)
