"""Build networks of segmentation-models-pytorch by architecture and encoder: ``smp:Unet/resnet18``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from secateur.errors import CheckpointError, UsageError, closest
from secateur.inputs import InputSpec, Json, NamedInputs
from secateur.integrations.libraries import library, positive

_SIDE = 224


class SegmentationModels:
    """The segmentation networks, with random weights; arguments are those of the architecture.

    ``num_classes`` is the number of maps that are returned, and ``image_size`` the side of example inputs.
    """

    def names(self) -> list[str]:
        """List the architectures; an encoder follows after a slash."""
        return [kind.__name__ for kind in _library().MODEL_ARCHITECTURES_MAPPING.values()]

    def known(self, name: str) -> bool:
        """Check architecture and encoder.

        Raises:
            UsageError: there is no such encoder.
        """
        architecture, slash, encoder = name.partition("/")
        if not slash:
            raise UsageError(f"smp:{name} names no encoder; write e.g. smp:Unet/resnet18")
        encoders = _library().encoders.get_encoder_names()
        if encoder not in encoders and not encoder.startswith("tu-"):
            raise UsageError(f"smp:{name}: there is no encoder {encoder!r}{closest(encoder, encoders)}")
        return architecture in self.names()

    def build(self, name: str, arguments: Mapping[str, Json]) -> nn.Module:
        """Build the network; nothing is downloaded."""
        architecture, _, encoder = name.partition("/")
        given = {key: value for key, value in arguments.items() if key not in ("num_classes", "image_size")}
        if "encoder_weights" in given:
            raise UsageError(
                f"smp:{name}: argument 'encoder_weights' is not passed on; give weights as weights="
            )
        if "num_classes" in arguments:
            given["classes"] = arguments["num_classes"]
        model: nn.Module = _library().create_model(architecture, encoder, encoder_weights=None, **given)
        return model

    def inputs(self, name: str, arguments: Mapping[str, Json]) -> InputSpec | NamedInputs:
        """Return square images with the normalisation of ImageNet."""
        side = positive("smp", "image_size", arguments.get("image_size")) or _SIDE
        channels = positive("smp", "in_channels", arguments.get("in_channels")) or 3
        if channels == 3:
            return InputSpec((channels, side, side))
        return InputSpec((channels, side, side), (0.5,) * channels, (0.5,) * channels)

    def has_weights(self, name: str) -> bool:
        """Return whether there are published weights: there are none of whole networks."""
        return False

    def default_weights(self, name: str) -> Mapping[str, Tensor]:
        """Refuse: there are published weights of encoders only.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError(f"smp:{name} has no published weights: give a file, or none")


def _library() -> Any:
    return library("segmentation_models_pytorch")
