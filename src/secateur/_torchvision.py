"""Import torchvision with any build of torch.

After Secateur, torchvision can be imported (:mod:`secateur._torchvision_operators`). Files that import both
take torchvision from here, so that the order of their imports does not matter.

>>> from secateur._torchvision import torchvision
>>> torchvision.models.resnet18.__name__
'resnet18'
"""

from __future__ import annotations

import torchvision
from torchvision.transforms import v2  # not imported by torchvision itself

__all__ = ["has_operators", "torchvision", "v2"]


def has_operators() -> bool:
    """Return whether torchvision runs its own compiled operators, such as the suppression of boxes.

    They are missing beside another build of PyTorch than the one that torchvision was built for.
    """
    return bool(torchvision.extension._has_ops())
