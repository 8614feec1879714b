"""Build detectors of ultralytics by the name of their YAML file: ``ultralytics:yolov8n.yaml``."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from secateur.errors import CheckpointError, UsageError
from secateur.inputs import InputSpec, Json, NamedInputs
from secateur.integrations.libraries import library, positive, quiet_logs

_SIDE = 640
_CLASSES = {
    "detect": "DetectionModel",
    "segment": "SegmentationModel",
    "semantic": "SemanticSegmentationModel",
    "pose": "PoseModel",
    "obb": "OBBModel",
    "depth": "DepthModel",
    "classify": "ClassificationModel",
}
"""Classes of networks, by task."""


class Ultralytics:
    """The detectors that ultralytics describes in YAML, at every scale.

    Their parameters require gradients, as the trainer of ultralytics sets them. ``num_classes`` is the number
    of classes, ``channels`` that of the images' channels, and ``image_size`` their side in pixels.
    Only descriptions within the library are built: one in a file of yours can name code.
    """

    def names(self) -> list[str]:
        """List the names of the descriptions, without a scale."""
        return sorted(path.name for path in _descriptions().values())

    def known(self, name: str) -> bool:
        """Check that the library describes the network.

        Raises:
            UsageError: it is a file of weights, or a description of the user's.
        """
        if name.endswith(".pt"):
            raise UsageError(
                f"ultralytics:{name} is a pickle, which can run code, and is not opened; build the network "
                "by its YAML name, and give the weights: save model.model.state_dict() of YOLO(...) to a "
                "file; or give the path of the .pt file without ultralytics:, and --trusted"
            )
        if name.removesuffix(".yaml") in _descriptions() or _unscaled(name) in _descriptions():
            return True
        if "/" in name or Path(name).is_file():
            raise UsageError(
                f"ultralytics:{name} is a file of yours, which can name code; write a function that builds "
                "it and name that: path/to/file.py:function"
            )
        return False

    def build(self, name: str, arguments: Mapping[str, Json]) -> nn.Module:
        """Build the network of the description."""
        with quiet_logs(logging.WARNING):  # its import sets the level of its logger once
            tasks = library("ultralytics.nn.tasks")
            description = tasks.yaml_model_load(f"{name.removesuffix('.yaml')}.yaml")
        head = str(description["head"][-1][2])
        task = tasks.guess_model_task(description)
        kind = "RTDETRDetectionModel" if head.startswith("RTDETR") else _CLASSES.get(str(task))
        if kind is None or "World" in head or "YOLOE" in head:
            raise UsageError(f"ultralytics:{name} ends in {head}, which is built in Python only")
        classes = positive("ultralytics", "num_classes", arguments.get("num_classes"))
        channels = positive("ultralytics", "channels", arguments.get("channels")) or 3
        if unknown := arguments.keys() - {"num_classes", "channels", "image_size"}:
            raise UsageError(f"ultralytics networks take no {', '.join(sorted(unknown))}")
        given = {"nc": classes} if classes else {}
        with quiet_logs(logging.WARNING):  # its import sets the level of its logger once
            model: nn.Module = getattr(tasks, kind)(description, ch=channels, verbose=False, **given)
        vars(model)["task"] = task or "detect"  # as YOLO(name) sets it; RT-DETR finds boxes
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        return model

    def inputs(self, name: str, arguments: Mapping[str, Json]) -> InputSpec | NamedInputs:
        """Return square images of 640 pixels (224 for classifiers), whose values lie in [0, 1]."""
        channels = positive("ultralytics", "channels", arguments.get("channels")) or 3
        usual = 224 if "-cls" in name else _SIDE
        side = positive("ultralytics", "image_size", arguments.get("image_size")) or usual
        return InputSpec((channels, side, side), (0.0,) * channels, (1.0,) * channels)

    def has_weights(self, name: str) -> bool:
        """Return whether there are published weights: there are none, since published ones are pickles."""
        return False

    def default_weights(self, name: str) -> Mapping[str, Tensor]:
        """Refuse: published weights are pickles of whole networks.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError(
            f"the published weights of ultralytics:{name} are a pickle, which is not opened; "
            "give a file of tensors"
        )


def _descriptions() -> dict[str, Path]:
    """Return the YAML files within the library, by name without their ending."""
    folder = Path(str(library("ultralytics").__file__)).parent / "cfg" / "models"
    return {path.stem: path for path in folder.rglob("*.yaml")}


def _unscaled(name: str) -> str:
    """Remove ending and scale: ``yolov8n-seg.yaml`` is ``yolov8-seg`` at scale ``n``.

    >>> _unscaled("yolo11x.yaml"), _unscaled("yolov8-seg")
    ('yolo11', 'yolov8-seg')
    """
    return re.sub(r"(\d+)[nslmx](-.+)?$", r"\1\2", name.removesuffix(".yaml"))
