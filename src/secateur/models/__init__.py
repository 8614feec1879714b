"""Build networks by name, with weights from a file and a description of their inputs.

>>> model = build("secateur:resnet20", classes=10)
>>> sum(parameter.numel() for parameter in model.parameters())
269722
"""

from __future__ import annotations

from secateur.inputs import InputSpec, NamedInputs, image_spec
from secateur.models.registry import ModelSpec, build
from secateur.models.weights import LoadedWeights, load_weights

__all__ = ["InputSpec", "LoadedWeights", "ModelSpec", "NamedInputs", "build", "image_spec", "load_weights"]
