"""Make torchvision importable with a build of torch that its compiled operators do not fit.

The torchvision wheel cannot load its compiled operators with, for example, a CPU build of torch, and then
fails on import: it describes two operators that are not declared. Networks, transforms and data sets do not
need them, so the two are declared when torchvision is imported, if they are missing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_DESCRIBING = "torchvision._meta_registrations"  # imported once torchvision has tried to load its operators

# A declaration exists as long as the library object that made it.
_libraries: list[Any] = []


class OperatorDeclarer(MetaPathFinder):
    """Declare the missing operators just before torchvision describes them; find no module itself."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Declare what is missing, and leave the import to the other finders."""
        if fullname == _DESCRIBING:
            import torch

            missing = [s for s in _SCHEMAS if not hasattr(torch.ops.torchvision, s.partition("(")[0])]
            if missing:
                _libraries.append(torch.library.Library("torchvision", "FRAGMENT"))
            for schema in missing:
                _libraries[-1].define(schema)
        return None


def install() -> None:
    """Observe the import of torchvision from now on."""
    if not any(isinstance(finder, OperatorDeclarer) for finder in sys.meta_path):
        sys.meta_path.insert(0, OperatorDeclarer())
