"""Open and save files of ultralytics (``.pt``)."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import torch
from torch import nn

from secateur.detection.library import ultralytics_in_use
from secateur.detection.raw_outputs import bare_copy
from secateur.errors import CheckpointError, UsageError
from secateur.files import replacing
from secateur.formats import first_line
from secateur.integrations.libraries import library

_NOT_BUILT = (
    "pruned by Secateur, so not built from a description; train it with "
    "trainer=secateur.detection.trainers.PrunedDetectionTrainer"
)
"""What the library's own trainer reports when it looks for this name of a layer."""


def open_detector(path: str | Path, *, trusted: bool = False) -> nn.Module:
    """Open a ``.pt`` file of ultralytics.

    The file is a pickle, which can run any code when it is opened.

    Args:
        path: the file.
        trusted: whether it comes from a source that you trust.

    Returns:
        The network in evaluation mode, in float32, on the CPU. Its parameters require gradients.

    Raises:
        UsageError: the file is not trusted, is not there, or ultralytics is not installed.
        CheckpointError: the file is no checkpoint of ultralytics.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    if not trusted:
        raise UsageError(
            f"{path} is a pickle, and opening it can run any code that it holds: if you trust where it comes "
            "from, give trusted=True, or --trusted on the command line"
        )
    with ultralytics_in_use():
        tasks = library("ultralytics.nn.tasks")
        try:
            network, _ = tasks.load_checkpoint(path)
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise CheckpointError(
                f"{path} is no checkpoint of ultralytics ({reason}); if it holds weights only, give the name "
                "of the network, such as ultralytics:yolov8n.yaml, and this file as its weights"
            ) from error
        if not isinstance(network, tasks.BaseModel):
            kind = type(network).__name__
            raise CheckpointError(f"{path} is no checkpoint of ultralytics: its network is a {kind}")
        # The library takes a network that was saved without its task for one that finds boxes.
        if description := getattr(network, "yaml", None):
            network.task = tasks.guess_model_task(description) or network.task
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return network  # type: ignore[no-any-return]


def save_detector(path: str | Path, network: nn.Module) -> Path:
    """Write a pruned network to a ``.pt`` file that ``YOLO(path)`` opens without Secateur.

    Weights are kept in float16, as ultralytics keeps them. The library's own trainer refuses the file
    (:func:`keep_from_rebuilding`); the trainers of :mod:`secateur.detection.trainers` train it.

    Args:
        path: the file.
        network: a network of ultralytics; not changed.

    Returns:
        The file.
    """
    path = Path(path)
    with ultralytics_in_use() as ultralytics:
        copied = bare_copy(network).half()
        keep_from_rebuilding(copied)
        given = getattr(network, "args", {})
        arguments = dict(given if isinstance(given, dict) else vars(given))
        # Without it, the library takes every network for one that finds boxes.
        arguments["task"] = getattr(network, "task", None) or library(
            "ultralytics.nn.tasks"
        ).guess_model_task(network)
        content = {
            "epoch": -1,
            "best_fitness": None,
            "ema": None,
            "updates": None,
            "optimizer": None,
            "model": copied,
            "train_args": arguments,
            "date": datetime.now().astimezone().isoformat(),
            "version": ultralytics.__version__,
        }
        with replacing(path) as partial:
            torch.save(content, partial)
    return path


def keep_from_rebuilding(network: nn.Module) -> None:
    """Keep the library's own trainer from building the unpruned network of a pruned one.

    It builds networks from the description that they carry. The first layer gets a name there that does not
    exist, so it stops with this name instead.

    Args:
        network: of ultralytics; its description is changed in place.
    """
    description = getattr(network, "yaml", None)
    if isinstance(description, dict) and description.get("backbone"):
        description["backbone"][0][2] = _NOT_BUILT
