"""Classify images: the job behind ``secateur predict``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.data.augment import center
from secateur.data.decode import Decoder
from secateur.data.loader import normalized
from secateur.data.settings import shorter_side
from secateur.detection.head_outputs import is_torchvision_detector
from secateur.errors import DataError, UsageError
from secateur.graph.capture.program import mode_of
from secateur.jobs.networks import Network, open_network, refuse_ultralytics
from secateur.jobs.settings import NetworkChoice
from secateur.recipes import Callback
from secateur.training.context import RunContext
from secateur.training.events import report_progress
from secateur.training.losses import main_output
from secateur.training.settings import DeviceSettings

_BATCH = 32
_IN_ULTRALYTICS = "predict('image.jpg')"


def predict(
    choice: NetworkChoice,
    images: Sequence[Path],
    top: int = 5,
    device: DeviceSettings | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Classify images, prepared as the test images of the network's run were.

    Args:
        choice: the network.
        images: files.
        top: number of classes that are named for each image, the most probable ones.
        device: where to compute.
        callbacks: receive the progress.

    Returns:
        ``network``, ``model``; ``predictions``, each with ``image`` and its ``classes``: ``name``, ``index``
        and ``probability``, the most probable first; ``failed``, each with ``image`` and the ``reason``
        why it could not be read.

    Raises:
        DataError: the network does not classify.
        UsageError: it is a network of ultralytics, which predicts with that library, or another detector.
        SecateurError: the network cannot be opened.
    """
    if top < 1:
        raise UsageError(f"top is at least 1, not {top}")
    context = RunContext(device or DeviceSettings())
    refuse_ultralytics(choice, _IN_ULTRALYTICS)
    network = open_network(choice)
    refuse_ultralytics(choice, _IN_ULTRALYTICS, network.model)
    if is_torchvision_detector(network.model):
        raise UsageError(
            f"{choice.source} finds boxes, and predict names the classes of whole images; in Python, "
            f"sec.load({str(network.file or 'best.safetensors')!r}).eval()([image]) returns boxes, labels "
            "and scores of an image of values in [0, 1]"
        )
    network.model.to(context.device)
    decoder = Decoder(network.input.size[0], shorter_side(network.input))
    predictions: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    for number, paths in enumerate(_batches(images)):
        report_progress(callbacks, "classifying", number * _BATCH, len(images))
        pixels = {}
        for path in paths:
            try:
                pixels[path] = _read(path, decoder, network)
            except DataError as error:
                failed.append({"image": str(path), "reason": str(error).removeprefix(f"{path}: ")})
        if pixels:
            probabilities = _probabilities(network, torch.stack(list(pixels.values())).to(context.device))
            predictions += [
                {"image": str(path), "classes": _best(row, network, top)}
                for path, row in zip(pixels, probabilities, strict=True)
            ]
    report_progress(callbacks, "classifying", len(images), len(images))
    return {"network": choice.source, "model": network.name, "predictions": predictions, "failed": failed}


def _batches(images: Sequence[Path]) -> list[Sequence[Path]]:
    return [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]


def _read(path: Path, decoder: Decoder, network: Network) -> Tensor:
    """Read an image as the network takes it, shape (C, H, W)."""
    if not path.is_file():
        raise DataError("there is no such file")
    height, width = network.input.size[1:]
    return normalized(center(decoder(path), (height, width))[None], network.input)[0]


def _probabilities(network: Network, inputs: Tensor) -> Tensor:
    """Compute the probability of each class, shape (B, classes)."""
    with mode_of(network.model, training=False), torch.inference_mode():
        scores = main_output(network.model(inputs))
    if scores.ndim != 2:
        raise DataError(
            f"{network.name} returns scores of shape {tuple(scores.shape)} for {len(inputs)} images; predict "
            "needs a classifier, which returns one score for each class"
        )
    return scores.float().softmax(dim=1).cpu()


def _best(row: Tensor, network: Network, top: int) -> list[dict[str, Any]]:
    values, indices = row.topk(min(top, len(row)))
    names = network.classes or tuple(map(str, range(len(row))))
    return [
        {"name": names[index], "index": index, "probability": value}
        for value, index in zip(values.tolist(), indices.tolist(), strict=True)
    ]
