"""Find what the fused kernels of PyTorch's transformer encoders demand of a smaller network.

In evaluation mode without gradients, :class:`torch.nn.TransformerEncoderLayer` runs one fused kernel that
reads the tensors of all its modules. :class:`torch.nn.TransformerEncoder` leaves padded positions out by
nested tensors, which only that kernel takes, and only for an even number of heads. A check in
float64 does not run it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from torch import nn

from secateur.graph.capture.calls import ModuleCall
from secateur.graph.labels import SlotTable

KEEPS_FUSED = (
    "the encoder leaves padded positions out by nested tensors (enable_nested_tensor=False frees it)"
)
"""Why a branch of a layer stays that must run the fused kernel."""

_PADDING = ("src_key_padding_mask", 2)
_MASK = ("mask", 1)
"""Arguments of an encoder, by name and by position."""


def nested_layers(model: nn.Module, calls: Mapping[str, Sequence[ModuleCall]]) -> tuple[str, ...]:
    """List the encoder layers that are given nested tensors.

    Args:
        model: the network.
        calls: the calls of its modules in evaluation mode, by path.

    Returns:
        Their paths.
    """
    found: list[str] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.TransformerEncoder) or not getattr(module, "use_nested_tensor", False):
            continue
        given = [call.arguments.keys() for call in calls.get(path, ())]
        if any(not keys.isdisjoint(_PADDING) and keys.isdisjoint(_MASK) for keys in given):
            prefix = f"{path}." if path else ""
            found += [f"{prefix}layers.{number}" for number in range(len(module.layers))]
    return tuple(found)


def pair_heads(model: nn.Module, layers: Iterable[str], slots: SlotTable) -> None:
    """Remove heads of layers that are given nested tensors in twos.

    Args:
        model: the network.
        layers: paths of the layers.
        slots: of its tensors; equalities are added.
    """
    for path in layers:
        attention = getattr(model.get_submodule(path), "self_attn", None)
        name = f"{path}.self_attn.in_proj_weight"
        if isinstance(attention, nn.MultiheadAttention) and (name, 0) in slots.spans:
            heads = slots.span(name, 0).reshape(3, attention.num_heads, -1)
            if attention.num_heads % 2 == 0:
                slots.join(np.ascontiguousarray(heads[:, ::2]), np.ascontiguousarray(heads[:, 1::2]))


def unfused(model: nn.Module, paths: Iterable[str]) -> tuple[tuple[str, str, int], ...]:
    """Switch the fused kernel off in encoder layers that lose some modules, and nested tensors around them.

    Args:
        model: the network.
        paths: of the modules.

    Returns:
        Path of the layer or the encoder, name of an attribute that makes it run its modules, and its value.
    """
    found: list[tuple[str, str, int]] = []
    for layer in dict.fromkeys(path.rpartition(".")[0] for path in paths):
        if isinstance(model.get_submodule(layer), nn.TransformerEncoderLayer):
            found.append((layer, "activation_relu_or_gelu", 0))
            encoder = layer.rpartition(".layers.")[0]
            around = model.get_submodule(encoder) if ".layers." in f".{layer}" else None
            if isinstance(around, nn.TransformerEncoder) and around.use_nested_tensor:
                found.append((encoder, "use_nested_tensor", False))
    return tuple(found)
