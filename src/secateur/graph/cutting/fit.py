"""Return whether a network is the one that a channel graph describes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from secateur.arguments import check_arguments
from secateur.errors import UsageError
from secateur.graph.channel_graph import ChannelGraph
from secateur.graph.cutting.tensors import named_tensors


def misfit(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Find a parameter or buffer of another shape than expected.

    Args:
        model: the network.
        shapes: expected shapes by name; other tensors of the network do not matter.

    Returns:
        What is wrong with the first such tensor, ``None`` if there is none.

    Example:
        >>> misfit(nn.Linear(3, 2), {"weight": (2, 4)})
        "'weight' has shape (2, 3) instead of (2, 4)"
    """
    tensors = named_tensors(model)
    for name, shape in shapes.items():
        if name not in tensors:
            return f"it has no tensor '{name}'"
        found = tuple(tensors[name].shape)
        if found != shape:
            return f"'{name}' has shape {found} instead of {shape}"
    return None


def refuse_misfit(model: nn.Module, graph: ChannelGraph) -> None:
    """Refuse a network that a graph does not describe.

    Args:
        model: the network.
        graph: the channel graph.

    Raises:
        UsageError: a tensor is missing or of another shape, or one of the two is something else; the message
            says what to pass instead.
    """
    check_arguments(model=model, graph=graph)
    found = misfit(model, graph.tensors)
    if found is not None:
        raise UsageError(
            f"model is not the network that the channel graph describes: {found}; pass the network that was "
            "traced, and for a cut one graph.after(plan)"
        )
