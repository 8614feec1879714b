"""Export a network for ONNX Runtime, or for PyTorch without Secateur.

>>> import tempfile, torch
>>> with tempfile.TemporaryDirectory() as folder:
...     print(export(f"{folder}/line.pt2", torch.nn.Linear(3, 2), torch.randn(2, 3)).format)
pt2
"""

from __future__ import annotations

from secateur.export.check import FileCheck
from secateur.export.run import WEIGHTS_AS, Description, Exported, export

__all__ = ["WEIGHTS_AS", "Description", "Exported", "FileCheck", "export"]
