"""Wrap detectors of torchvision as networks of fixed outputs, so that they can be traced and cut whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur._torchvision import detectors_runnable, torchvision
from secateur.errors import UsageError

_REGIONS = ("box", "mask", "keypoint")
_TRANSFORM = "transform"
"""The child of a detector that makes batches of images of several sizes. It has no parameters."""


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
        if not is_torchvision_detector(detector):
            raise UsageError(
                f"{type(detector).__name__} is no detector of torchvision: it has no backbone with a head or "
                "an rpn"
            )
        for name, child in detector.named_children():
            if name != _TRANSFORM:
                self.add_module(name, child)
        # A tuple, so that nothing in it counts as a part of this network.
        self._shell = (_without_children(detector),)
        self.train(detector.training)

    def forward(self, images: Tensor, targets: Sequence[Mapping[str, Tensor]] | None = None) -> Any:
        """Run backbone and heads.

        Args:
            images: normalised, shape ``(N, 3, H, W)``.
            targets: for each image its ``boxes`` in pixels of these images, shape ``(M, 4)``, and their
                ``labels``, shape ``(M,)``.

        Returns:
            What the heads return, by name. With targets also ``loss``, the sum of the detector's own losses,
            in both modes; of the heads that read regions only the loss is given then.
        """
        parts: Any = self._modules
        features = parts["backbone"](images)
        maps: Mapping[str, Tensor] = {"0": features} if isinstance(features, Tensor) else features
        found: dict[str, Any] = {}
        if "head" in parts:
            found.update(parts["head"](list(maps.values())))
        else:
            found["rpn.logits"], found["rpn.boxes"] = parts["rpn"].head(list(maps.values()))
        if targets is not None:
            return {"loss": self._loss(images, targets, features, found), **found}
        if "head" not in parts:
            found.update(self._of_regions(maps))
        return found

    def detect(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Detect objects.

        Args:
            images: as for :meth:`forward`.

        Returns:
            For each image ``boxes`` in pixels of these images, ``scores`` and ``labels``.
        """
        with _running(self.detector(), False, transform=_Ready()) as whole:
            found: list[dict[str, Tensor]] = whole(list(images))
        return found

    def detector(self) -> nn.Module:
        """Return the detector with the modules of this network, which are not copied."""
        whole = copy(self._shell[0])
        vars(whole)["_modules"] = {
            name: self._modules.get(name, child) for name, child in whole._modules.items()
        }
        whole.training = self.training
        return whole

    def _of_regions(self, maps: Mapping[str, Tensor]) -> Iterator[tuple[str, Any]]:
        """Run the heads that read regions."""
        parts: Any = self._modules
        for kind in _REGIONS:
            pool = getattr(parts["roi_heads"], f"{kind}_roi_pool", None)
            head = getattr(parts["roi_heads"], f"{kind}_head", None)
            if pool is not None and head is not None:
                regions = torch.cat(
                    [F.adaptive_avg_pool2d(maps[name], pool.output_size) for name in pool.featmap_names]
                )
                yield kind, getattr(parts["roi_heads"], f"{kind}_predictor")(head(regions))

    def _loss(self, images: Tensor, targets: Any, features: Any, found: dict[str, Any]) -> Tensor:
        """Compute the detector's losses from feature maps and outputs that are known already."""
        given: dict[str, nn.Module] = {"transform": _Ready(), "backbone": _Known(features)}
        if "head" in self._modules:
            given["head"] = _known(self._modules["head"], found)
        with _running(self.detector(), True, **given) as whole:
            losses: Mapping[str, Tensor] = whole(list(images), list(targets))
        return torch.stack([loss.reshape(()) for loss in losses.values()]).sum()


def is_torchvision_detector(network: nn.Module) -> bool:
    """Return whether a network has the parts of a detector of torchvision.

    >>> is_torchvision_detector(nn.Linear(2, 2))
    False
    """
    children = dict(network.named_children())
    return "backbone" in children and _TRANSFORM in children and ("head" in children or "rpn" in children)


def _without_children(detector: nn.Module) -> nn.Module:
    """Copy a detector, with its settings and places for its modules; only the transform is there."""
    shell = copy(detector)
    vars(shell)["_modules"] = {
        name: child if name == _TRANSFORM else None for name, child in detector._modules.items()
    }
    return shell


@contextmanager
def _running(whole: Any, training: bool, **given: nn.Module) -> Iterator[Any]:
    """Exchange modules of a detector and set which of its results it computes, losses or boxes.

    The modes of layers are not changed, so losses can be computed in evaluation mode.
    """
    vars(whole)["_modules"] = {**whole._modules, **given}
    asked = [whole, *(whole._modules[name] for name in ("rpn", "roi_heads") if name in whole._modules)]
    before = [module.training for module in asked]
    for module in asked:
        module.training = training
    try:
        with detectors_runnable():
            yield whole
    finally:
        for module, mode in zip(asked, before, strict=True):
            module.training = mode


class _Ready(nn.Module):
    """Stand in for the transform of a detector where images are normalised and of one size already."""

    def forward(self, images: Sequence[Tensor], targets: Any = None) -> tuple[Any, Any]:
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        return torchvision.models.detection.image_list.ImageList(torch.stack(list(images)), sizes), targets

    def postprocess(self, result: Any, sizes: Any, original: Any) -> Any:
        return result


class _Known(nn.Module):
    """Return a result that is known already."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self._result = (result,)

    def forward(self, *_: Any) -> Any:
        return self._result[0]


def _known(head: Any, result: Any) -> nn.Module:
    """Copy a head, which also computes losses, so that it returns a result that is known already."""
    copied: nn.Module = copy(head)
    copied.forward = lambda *_: result
    return copied
