"""Small detectors of torchvision for tests on images of 64 pixels."""

from __future__ import annotations

import torch
from torch import nn

from secateur._torchvision import torchvision


class Backbone(nn.Module):
    """Three layers with strides; two maps where a detector reads several."""

    def __init__(self, several: bool = False, width: int = 16) -> None:
        super().__init__()
        self.stem = self._layer(3, 12, 4)
        self.body = self._layer(12, width, 2)
        self.last = self._layer(width, width, 2)
        self.several, self.out_channels = several, [width] * 2 if several else width

    @staticmethod
    def _layer(before: int, after: int, stride: int) -> nn.Sequential:
        conv = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU())

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the feature maps."""
        x = self.body(self.stem(x))
        return {"0": x, "1": self.last(x)} if self.several else {"0": self.last(x)}


def small_detector(kind: str, classes: int = 2) -> nn.Module:
    """Build ``SSD``, ``RetinaNet``, ``FCOS`` or ``FasterRCNN`` for images of 64 pixels, untrained."""
    torch.manual_seed(0)
    kinds = torchvision.models.detection
    anchors = kinds.anchor_utils.AnchorGenerator
    if kind == "SSD":
        boxes = kinds.anchor_utils.DefaultBoxGenerator([[2], [2]], scales=[0.3, 0.5, 0.9])
        found = kinds.ssd.SSD(Backbone(several=True), boxes, (64, 64), classes + 1)
    elif kind == "FasterRCNN":
        sizes = anchors(((16, 24, 32),), ((0.5, 1.0, 2.0),))
        pool = torchvision.ops.MultiScaleRoIAlign(["0"], output_size=3, sampling_ratio=1)
        found = kinds.FasterRCNN(
            Backbone(),
            min_size=64,
            max_size=64,
            rpn_anchor_generator=sizes,
            rpn_pre_nms_top_n_train=50,
            rpn_pre_nms_top_n_test=50,
            rpn_post_nms_top_n_train=20,
            rpn_post_nms_top_n_test=20,
            box_roi_pool=pool,
            box_head=kinds.faster_rcnn.TwoMLPHead(16 * 9, 32),
            box_predictor=kinds.faster_rcnn.FastRCNNPredictor(32, classes + 1),
        )
    else:
        ratios = ((1.0,),) if kind == "FCOS" else ((0.5, 1.0, 2.0),)
        sizes = anchors(((24,),), ratios)
        width = 64 if kind == "FCOS" else 16  # its head normalises 32 groups of channels
        found = getattr(kinds, kind)(
            Backbone(width=width), classes + 1, min_size=64, max_size=64, anchor_generator=sizes
        )
    return found.eval()
