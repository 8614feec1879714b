"""Return the raw outputs of a detector's heads: what its loss reads, and what a cut must not change."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from secateur.training.distillation import Teacher

_MAPS = "feats"
"""The name of the feature maps among raw outputs. The loss reads their sizes only."""


class RawOutputs:
    """The part of a detector's class that makes it return raw outputs; see :func:`with_raw_outputs`."""

    detector: type[nn.Module]

    def forward(self, images: Tensor) -> Any:
        """Run the detector.

        Args:
            images: shape ``(N, C, H, W)``, values in [0, 1].

        Returns:
            The raw outputs, by name where there are several.
        """
        outputs = super().forward(images)  # type: ignore[misc]
        return _without_maps(outputs[1] if isinstance(outputs, tuple) else outputs)


def with_raw_outputs(network: nn.Module) -> nn.Module:
    """Copy a detector of ultralytics so that it returns the raw outputs of its heads in both modes.

    They are compared, scored and reconstructed in place of decoded boxes: decoding has no parameters, and
    boxes in pixels are large beside class scores. The feature maps that the heads read are left out. As
    outputs of the network they could not be pruned, and the loss needs their sizes only. Modules keep their
    names.

    Example:
        >>> class Detector(nn.Module):
        ...     def forward(self, x):
        ...         return x.flatten(), {"boxes": x, "feats": [x]}
        >>> raw = with_raw_outputs(Detector())
        >>> {name: tuple(value.shape) for name, value in raw(torch.zeros(1, 2)).items()}
        {'boxes': (1, 2)}
        >>> len(without_raw_outputs(raw)(torch.zeros(1, 2)))
        2
    """
    copied = bare_copy(network)
    copied.__class__ = _class_with_raw_outputs(type(network))  # type: ignore[arg-type]
    return copied


def without_raw_outputs(network: nn.Module) -> nn.Module:
    """Copy a detector that returns raw outputs, as one of its former class."""
    assert isinstance(network, RawOutputs)
    copied = bare_copy(network)
    copied.__class__ = network.detector
    _set_halves(copied)
    return copied


def _set_halves(network: nn.Module) -> None:
    """Set the width of the halves into which blocks split a tensor, as exporters of ultralytics read it.

    In other passes these blocks halve the tensor without this number, so a cut does not change it.
    """
    blocks: list[Any] = [module for module in network.modules() if hasattr(module, "forward_split")]
    for block in blocks:
        block.c = block.cv1.conv.out_channels // 2


def bare_copy(network: nn.Module) -> nn.Module:
    """Copy a detector without the loss that its trainer has attached to it."""
    loss = vars(network).pop("criterion", None)
    try:
        return deepcopy(network)
    finally:
        if loss is not None:
            network.criterion = loss


def copy_without_trainer(network: nn.Module) -> nn.Module:
    """Copy a detector without anything that its trainer has attached to it: its loss and its arguments."""
    copied = bare_copy(network)
    vars(copied).pop("args", None)
    return copied


@cache
def _class_with_raw_outputs(detector: type[nn.Module]) -> type[nn.Module]:
    return type(
        f"{detector.__name__}Raw", (RawOutputs, detector), {"detector": detector, "__module__": __name__}
    )


class DetectorLoss:
    """The loss of a detector, computed from its raw outputs.

    Args:
        network: a detector of the same family with its ``args``; its weights do not matter.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def __call__(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """Return the mean loss of one image.

        Args:
            outputs: of a network :func:`with_raw_outputs`.
            batch: what the loader of ultralytics returns, with images of shape ``(N, C, H, W)``.
        """
        images: Tensor = batch["img"]
        raw = self._with_maps(outputs, images)
        # In evaluation mode networks return boxes and raw outputs, and some losses expect both.
        given = raw if self._network.training else (None, raw)
        loss, _ = self._network.loss(batch, given)  # type: ignore[operator]
        return loss.sum() / len(images)  # type: ignore[no-any-return]

    def _with_maps(self, outputs: Any, images: Tensor) -> Any:
        """Add maps of the right sizes to raw outputs."""
        if not isinstance(outputs, Mapping):
            return outputs
        if "boxes" not in outputs:
            return {name: self._with_maps(value, images) for name, value in outputs.items()}
        strides: Tensor = self._network.stride  # type: ignore[assignment]
        return {**outputs, _MAPS: [_map(outputs["boxes"], images, int(stride)) for stride in strides]}


class DistilledLoss:
    """The loss of a detector in training, with the difference of its raw outputs from a teacher's.

    Args:
        loss: of ultralytics.
        teacher: a network that returns raw outputs.
    """

    def __init__(self, loss: Any, teacher: Teacher) -> None:
        self._loss, self._teacher = loss, teacher

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_loss"], name)

    def __call__(self, outputs: Any, batch: Mapping[str, Any]) -> tuple[Tensor, Any]:
        """Compute the parts of the loss of a batch, which are summed over its images, and its means.

        Args:
            outputs: of the detector in training mode.
            batch: of the loader of ultralytics.
        """
        losses, means = self._loss(outputs, batch)
        images: Tensor = batch["img"]
        found = _without_maps(outputs[1] if isinstance(outputs, tuple) else outputs)
        zero = torch.zeros((), device=images.device)
        extra = self._teacher.join(zero, found, images, scores=False) * len(images)
        return losses + extra / losses.numel(), means


def _without_maps(outputs: Any) -> Any:
    if isinstance(outputs, dict):
        return {name: _without_maps(value) for name, value in outputs.items() if name != _MAPS}
    return outputs


def _map(like: Tensor, images: Tensor, stride: int) -> Tensor:
    """Make a map of one value, of the size that a head with this stride reads."""
    height, width = (-(-side // stride) for side in images.shape[-2:])
    return torch.zeros((), dtype=like.dtype, device=like.device).expand(len(images), 1, height, width)
