"""Detectors of torchvision as networks of fixed outputs, so that they can be traced and cut whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.errors import UsageError

_REGIONS = ("box", "mask", "keypoint")


class HeadOutputs(nn.Module):
    """Run the backbone and the heads of a detector of torchvision, without choosing boxes.

    How many boxes a detector returns depends on the values in the images, so it cannot be captured as it is.
    Backbone, pyramid and heads can: they are the detector's own modules, under their own names. A cut of
    this network in place is therefore a cut of the detector, which trains and detects as before.

    Heads that read regions (Faster R-CNN, Mask R-CNN, Keypoint R-CNN) read whole feature maps here, averaged
    to the size of a region. Pooling regions keeps channels apart as well, so the same channels are coupled.

    Args:
        detector: RetinaNet, FCOS, SSD, SSDlite, Faster R-CNN, Mask R-CNN or Keypoint R-CNN, or a class of the
            same parts.

    Raises:
        UsageError: the network has no such parts.

    Example:
        >>> from torchvision.models.detection import RetinaNet
        >>> from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
        >>> backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
        >>> outputs = HeadOutputs(RetinaNet(backbone, num_classes=3))(torch.zeros(1, 3, 64, 64))
        >>> {name: tuple(value.shape) for name, value in outputs.items()}
        {'cls_logits': (1, 3069, 3), 'bbox_regression': (1, 3069, 4)}
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        children = dict(detector.named_children())
        if "backbone" not in children or not ("head" in children or "rpn" in children):
            raise UsageError(
                f"{type(detector).__name__} is no detector of torchvision: it has no backbone with a head or "
                "an rpn"
            )
        for name, child in children.items():
            if name != "transform":  # it has no parameters, and makes lists of images
                self.add_module(name, child)
        self.train(detector.training)

    def forward(self, images: Tensor) -> Any:
        """Run backbone and heads.

        Args:
            images: normalised, shape ``(N, 3, H, W)``.

        Returns:
            What the heads return, by name.
        """
        parts: Any = self._modules
        features = parts["backbone"](images)
        maps: Mapping[str, Tensor] = {"0": features} if isinstance(features, Tensor) else features
        if "head" in parts:
            return parts["head"](list(maps.values()))
        logits, boxes = parts["rpn"].head(list(maps.values()))
        found: dict[str, Any] = {"rpn.logits": logits, "rpn.boxes": boxes}
        for kind in _REGIONS:
            pool = getattr(parts["roi_heads"], f"{kind}_roi_pool", None)
            head = getattr(parts["roi_heads"], f"{kind}_head", None)
            if pool is not None and head is not None:
                regions = torch.cat(
                    [F.adaptive_avg_pool2d(maps[name], pool.output_size) for name in pool.featmap_names]
                )
                found[kind] = getattr(parts["roi_heads"], f"{kind}_predictor")(head(regions))
        return found
