"""Build networks by name: of torchvision, timm, Secateur's own, and of libraries for other tasks.

A family lists its networks by name, builds them from plain arguments, describes their inputs and
fetches published weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Protocol
from urllib.error import URLError

from torch import Tensor, nn

from secateur._torchvision import torchvision
from secateur.errors import CheckpointError
from secateur.inputs import InputSpec, Json, NamedInputs
from secateur.integrations.diffusers import Diffusers
from secateur.integrations.huggingface import HuggingFace
from secateur.integrations.libraries import library
from secateur.integrations.segmentation import SegmentationModels
from secateur.integrations.ultralytics import Ultralytics
from secateur.models.cifar import resnet20, resnet56
from secateur.models.digits import DigitsNet

Arguments = Mapping[str, Json]

# Both were published with a different normalisation, to which they convert from the usual one. The
# explicit choice of the published initialisation also prevents a warning.
_INCEPTION: Arguments = {"transform_input": True, "init_weights": True}
_TORCHVISION_DEFAULTS: Mapping[str, Arguments] = {
    "googlenet": _INCEPTION,
    "inception_v3": _INCEPTION,
    # Published for larger images than its builder assumes.
    "vit_h_14": {"image_size": 518},
}

_BUILTIN: Mapping[str, tuple[Callable[..., nn.Module], InputSpec]] = {
    # Mean and deviation of scikit-learn's digits.
    "digits": (DigitsNet, InputSpec((1, 8, 8), (0.305,), (0.376,))),
    "resnet20": (resnet20, InputSpec((3, 32, 32))),
    "resnet56": (resnet56, InputSpec((3, 32, 32))),
}


_DETECTOR_SIDE = 640
"""Side of the images of detectors that take any size."""


class Family(Protocol):
    """A source of networks."""

    def names(self) -> list[str]:
        """List the names of all networks of the family, as far as they can be listed."""

    def known(self, name: str) -> bool:
        """Return whether there is a network of this name; raise UsageError to say why not."""

    def build(self, name: str, arguments: Arguments) -> nn.Module:
        """Build a network with new initial weights.

        Args:
            name: a known one.
            arguments: keyword arguments of the network's own builder.
        """

    def inputs(self, name: str, arguments: Arguments) -> InputSpec | NamedInputs:
        """Return the inputs that the network expects, from the recipe of its weights or from its config."""

    def has_weights(self, name: str) -> bool:
        """Return whether there are published weights, or weights beside the config."""

    def default_weights(self, name: str) -> Mapping[str, Tensor]:
        """Fetch the published weights; raise OSError if that fails."""


class Torchvision:
    """The classification networks of torchvision, and its detectors."""

    def names(self) -> list[str]:
        """List the names of classification networks as in ``torchvision.models``."""
        names: list[str] = torchvision.models.list_models(module=torchvision.models)
        return names

    def known(self, name: str) -> bool:
        """See :class:`Family`."""
        return name in self.names() or _is_detector(name)

    def has_weights(self, name: str) -> bool:
        """See :class:`Family`."""
        return True

    def build(self, name: str, arguments: Arguments) -> nn.Module:
        """See :class:`Family`."""
        backbone = {"weights_backbone": None} if _is_detector(name) else {}
        settings = {**_TORCHVISION_DEFAULTS.get(name, {}), **backbone, **arguments}
        model: nn.Module = torchvision.models.get_model(name, weights=None, **settings)
        return model

    def inputs(self, name: str, arguments: Arguments) -> InputSpec:
        """See :class:`Family`; detectors normalise images themselves."""
        if _is_detector(name):
            named = re.search(r"\d{3}", name)  # ssdlite320: it resizes all images to this side
            side = int(named.group()) if named else _DETECTOR_SIDE
            return InputSpec((3, side, side), (0.0,) * 3, (1.0,) * 3)
        recipe = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        settings = {**_TORCHVISION_DEFAULTS.get(name, {}), **arguments}
        side = _integer(settings, "image_size", recipe.crop_size[0])
        return InputSpec((3, side, side), tuple(recipe.mean), tuple(recipe.std))

    def default_weights(self, name: str) -> Mapping[str, Tensor]:
        """See :class:`Family`."""
        weights = torchvision.models.get_model_weights(name).DEFAULT
        try:
            state: Mapping[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
        except URLError as error:
            raise OSError(error.reason) from error
        return state


class Timm:
    """The networks of timm, where it is installed; a tag may follow the name (``resnet50.a1_in1k``)."""

    def names(self) -> list[str]:
        """List the names as in ``timm.list_models``, without tags."""
        return list(library("timm").list_models())

    def known(self, name: str) -> bool:
        """See :class:`Family`; a tag is checked when the network is built."""
        return name.partition(".")[0] in self.names()

    def has_weights(self, name: str) -> bool:
        """See :class:`Family`."""
        return True

    def build(self, name: str, arguments: Arguments) -> nn.Module:
        """See :class:`Family`."""
        model: nn.Module = library("timm").create_model(name, pretrained=False, **arguments)
        return model

    def inputs(self, name: str, arguments: Arguments) -> InputSpec:
        """See :class:`Family`."""
        config = library("timm").get_pretrained_cfg(name)
        if config is None:
            return InputSpec()
        channels, height, width = config.input_size
        height, width = _integer(arguments, "img_size", height), _integer(arguments, "img_size", width)
        wanted = _integer(arguments, "in_chans", channels)
        if wanted == channels:
            return InputSpec((channels, height, width), tuple(config.mean), tuple(config.std))
        # Published statistics are for other channels, so map [0, 1] to [-1, 1].
        return InputSpec((wanted, height, width), (0.5,) * wanted, (0.5,) * wanted)

    def default_weights(self, name: str) -> Mapping[str, Tensor]:
        """See :class:`Family`."""
        model: nn.Module = library("timm").create_model(name, pretrained=True)
        return model.state_dict()


class Builtin:
    """Secateur's own networks: small, for demonstrations and CIFAR-10."""

    def names(self) -> list[str]:
        """List ``digits``, ``resnet20`` and ``resnet56``."""
        return list(_BUILTIN)

    def known(self, name: str) -> bool:
        """See :class:`Family`."""
        return name in _BUILTIN

    def has_weights(self, name: str) -> bool:
        """See :class:`Family`."""
        return False

    def build(self, name: str, arguments: Arguments) -> nn.Module:
        """See :class:`Family`."""
        return _BUILTIN[name][0](**arguments)

    def inputs(self, name: str, arguments: Arguments) -> InputSpec:
        """See :class:`Family`."""
        return _BUILTIN[name][1]

    def default_weights(self, name: str) -> Mapping[str, Tensor]:
        """Raise an error, since there are none."""
        raise CheckpointError(
            f"secateur:{name} has no published weights: train it from scratch (weights none) or give a file"
        )


FAMILIES: Mapping[str, Family] = {
    "torchvision": Torchvision(),
    "timm": Timm(),
    "secateur": Builtin(),
    "hf": HuggingFace(),
    "ultralytics": Ultralytics(),
    "diffusers": Diffusers(),
    "smp": SegmentationModels(),
}


def _is_detector(name: str) -> bool:
    """Return whether torchvision has a detector of this name."""
    return name in torchvision.models.list_models(module=torchvision.models.detection)


def _integer(arguments: Arguments, name: str, default: int) -> int:
    value = arguments.get(name)
    return value if isinstance(value, int) else default
