"""Import torchvision with any build of torch.

After Secateur, torchvision can be imported (:mod:`secateur._torchvision_operators`). Files that import both
take torchvision from here, so that the order of their imports does not matter.

>>> from secateur._torchvision import torchvision
>>> torchvision.models.resnet18.__name__
'resnet18'
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor
from torchvision.transforms import v2  # not imported by torchvision itself

__all__ = ["detectors_runnable", "has_operators", "suppressed", "torchvision", "v2"]


def has_operators() -> bool:
    """Return whether torchvision runs its own compiled operators, such as the suppression of boxes.

    They are missing beside another build of PyTorch than the one that torchvision was built for.
    """
    return bool(torchvision.extension._has_ops())


@contextmanager
def detectors_runnable() -> Iterator[None]:
    """Let the detectors of torchvision run within a block, also without its compiled operators.

    Missing operators are replaced by functions in PyTorch, which give the same results more slowly.
    """
    boxes: Any = import_module("torchvision.ops.boxes")
    poolers: Any = import_module("torchvision.ops.poolers")
    before = boxes.nms, poolers.roi_align
    if not has_operators():
        boxes.nms, poolers.roi_align = suppressed, _aligned
    try:
        yield
    finally:
        boxes.nms, poolers.roi_align = before


def suppressed(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Choose boxes by score, and drop those that overlap a better one (non-maximum suppression).

    Args:
        boxes: left, top, right and bottom edges, shape ``(N, 4)``.
        scores: shape ``(N,)``.
        iou_threshold: largest allowed ratio of intersection and union.

    Returns:
        The indices of the boxes that stay, by descending score.

    >>> boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1.9], [5, 5, 6, 6]])
    >>> suppressed(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5).tolist()
    [1, 2]
    """
    order = scores.argsort(descending=True, stable=True)
    overlaps = (torchvision.ops.box_iou(boxes[order], boxes[order]) > iou_threshold).numpy(force=True)
    dropped = np.zeros(len(order), dtype=bool)
    for place, row in enumerate(overlaps):
        if not dropped[place]:
            dropped[place + 1 :] |= row[place + 1 :]
    return order[torch.from_numpy(~dropped).to(order.device)]


def _aligned(
    features: Tensor,
    regions: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """Sample features in regions by the definition of the operator in PyTorch, without compiling it."""
    plain: Any = import_module("torchvision.ops.roi_align")._roi_align
    while hasattr(plain, "__wrapped__"):
        plain = plain.__wrapped__
    found: Tensor = plain(features, regions, spatial_scale, *output_size, sampling_ratio, aligned)
    return found
