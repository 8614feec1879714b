"""Networks by name, with weights from a file, and what their inputs look like.

>>> model = build("secateur:resnet20", classes=10)
>>> sum(parameter.numel() for parameter in model.parameters())
269722
"""

from __future__ import annotations

from secateur.inputs import InputSpec, NamedInputs, pictures
from secateur.models.registry import ModelSpec, build
from secateur.models.weights import LoadedWeights, load_weights

__all__ = ["InputSpec", "LoadedWeights", "ModelSpec", "NamedInputs", "build", "load_weights", "pictures"]
