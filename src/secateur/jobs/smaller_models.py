"""Find the smaller networks of a network's own family, such as ResNet-18 of ResNet-50."""

from __future__ import annotations

import re
from typing import Any

import torch

from secateur.errors import SecateurError
from secateur.inputs import InputSpec
from secateur.models import ModelSpec
from secateur.network_cost import cost

_MOST = 3


def smaller_models(spec: ModelSpec, inputs: InputSpec, params: int) -> list[dict[str, Any]]:
    """List the largest networks of the same family that have fewer parameters, with their costs.

    Only families whose networks can be listed by name and are built without files are searched: those of
    torchvision and of Secateur. Names are of one family if they begin with the same letters.

    Args:
        spec: of the network.
        inputs: the images that the network expects.
        params: parameters of the network.

    Returns:
        ``name``, ``macs`` and ``params`` of each, the largest first.

    >>> spec = ModelSpec.parse("torchvision:squeezenet1_0", classes=2)
    >>> [found["name"] for found in smaller_models(spec, InputSpec((3, 32, 32)), 736_450)]
    ['torchvision:squeezenet1_1']
    """
    origin, _, name = spec.name.partition(":")
    if origin not in ("torchvision", "secateur"):
        return []
    smaller = []
    for other in spec.family_names():
        if other == name or _letters(other) != _letters(name):
            continue
        model = ModelSpec(f"{origin}:{other}", spec.arguments)
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in model.build().parameters())
        if count < params:
            smaller.append((count, model))
    smaller.sort(key=lambda entry: entry[0], reverse=True)
    found = []
    for count, model in smaller[:_MOST]:
        try:
            needs = cost(model.build(), inputs.example(2))
        except SecateurError:
            continue
        found.append({"name": model.name, "macs": needs.macs, "params": count})
    return found


def _letters(name: str) -> str:
    found = re.match(r"[a-z]*", name)
    return found.group() if found else ""
