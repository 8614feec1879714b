"""Imports torchvision, also beside a build of torch that its compiled operators do not fit.

The torchvision wheel cannot load its compiled operators beside, for example, a CPU build of torch,
and then fails on import: it describes two operators that nobody has declared. Networks, transforms
and data sets need none of them, so the two are declared here when, and only when, they are missing.

Everything in Secateur imports torchvision through this module:

>>> from secateur._torchvision import torchvision
>>> torchvision.models.resnet18.__name__
'resnet18'
"""

from __future__ import annotations

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

# A declaration lasts as long as the library object that made it.
_library: torch.library.Library | None = None


def _declare_missing_operators() -> torch.library.Library:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
            library.define(schema)
    return library


try:
    import torchvision
except RuntimeError as error:
    if "torchvision::nms" not in str(error):
        raise
    _library = _declare_missing_operators()
    import torchvision

from torchvision.transforms import v2  # noqa: E402  # not imported by torchvision itself

__all__ = ["torchvision", "v2"]
