"""Write and read checkpoints: one safetensors file that rebuilds the smaller network, without any code in it.

>>> import tempfile, torch
>>> from secateur.models import build
>>> model = build("secateur:digits", classes=3).eval()
>>> with tempfile.TemporaryDirectory() as folder:
...     save(f"{folder}/small.safetensors", model, builder=ModelSpec.parse("secateur:digits", classes=3))
...     again = load(f"{folder}/small.safetensors")
...     read_metadata(f"{folder}/small.safetensors").input_size
(1, 8, 8)
>>> inputs = torch.randn(1, 1, 8, 8)
>>> torch.equal(again(inputs), model(inputs))
True
"""

from __future__ import annotations

from secateur.checkpoint.loading import load, read_metadata
from secateur.checkpoint.metadata import Metadata
from secateur.checkpoint.saving import save
from secateur.models import ModelSpec

__all__ = ["Metadata", "ModelSpec", "load", "read_metadata", "save"]
