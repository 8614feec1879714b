"""Parse, check and build the specification of a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from secateur.errors import CheckpointError, UsageError, closest
from secateur.formats import first_line
from secateur.inputs import InputSpec, Json, NamedInputs, image_spec
from secateur.models.families import FAMILIES, Family
from secateur.models.userfile import find_function, names_a_file, takes
from secateur.models.weights import load_weights

# Arguments with which a builder would open or fetch files; Secateur loads weights itself.
_REFUSED = ("weights", "pretrained", "checkpoint_path", "cache_dir", "progress")


@dataclass(frozen=True)
class ModelSpec:
    """The builder of a network and its arguments, so that the network can be built again.

    Attributes:
        name: ``torchvision:resnet18``, ``timm:resnet50``, ``secateur:resnet20``, ``hf:path/to/folder``,
            ``ultralytics:yolov8n.yaml``, ``diffusers:path/to/folder``, ``smp:Unet/resnet18`` or
            ``path/to/file.py:function``.
        arguments: keyword arguments of the builder; plain values, so that they can be written as JSON.

    >>> spec = ModelSpec.parse("resnet18", classes=2)
    >>> spec
    ModelSpec(name='torchvision:resnet18', arguments={'num_classes': 2})
    >>> ModelSpec.from_dict(spec.to_dict()) == spec
    True
    >>> spec.input.size
    (3, 224, 224)
    """

    name: str
    arguments: Mapping[str, Json] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, *, classes: int | None = None, **arguments: Json) -> ModelSpec:
        """Parse a user's text to a specification.

        Args:
            text: as ``name``; a name without a colon is torchvision's.
            classes: number of outputs; the builder's default if not given. A function in a file receives it
                only if it takes ``num_classes``.
            arguments: further keyword arguments of the builder.

        Raises:
            UsageError: if there is no such network; the message lists names that are close.
        """
        name = text if names_a_file(text) else _known(text)
        if classes is not None:
            if classes < 1:
                raise UsageError(f"a network needs at least one class, not {classes}")
            if not names_a_file(name) or takes(find_function(name), "num_classes"):
                arguments["num_classes"] = classes
        return cls(name, _checked(name, arguments))

    @property
    def is_file(self) -> bool:
        """Return whether building runs a user's file."""
        return names_a_file(self.name)

    @property
    def inputs(self) -> InputSpec | NamedInputs:
        """Return the expected inputs; for a function in a file, 224 pixels and ImageNet's normalisation.

        Raises:
            UsageError: if they do not follow from the config of the network.
        """
        if self.is_file:
            return InputSpec()
        family, name = _split(self.name)
        return family.inputs(name, self.arguments)

    @property
    def input(self) -> InputSpec:
        """Return the images that the network expects.

        Raises:
            UsageError: if it expects something else.
        """
        return image_spec(self.name, self.inputs)

    @property
    def has_weights(self) -> bool:
        """Return whether there are published weights, or weights in the network's folder."""
        if self.is_file:
            return False
        family, name = _split(self.name)
        return family.has_weights(name)

    def family_names(self) -> list[str]:
        """List the names of all networks of the same origin; none for a function in a file."""
        return [] if self.is_file else _split(self.name)[0].names()

    def build(self) -> nn.Module:
        """Build the network with new initial weights, in training mode, on torch's default device.

        Raises:
            UsageError: if the builder does not take the arguments, or returns no network.
        """
        try:
            model = self._builder()(**self.arguments)
        except UsageError:
            raise
        except Exception as error:  # builders fail in many ways
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise UsageError(f"{self.name} cannot be built with {dict(self.arguments)}: {reason}") from error
        if not isinstance(model, nn.Module):
            raise UsageError(f"{self.name} returns a {type(model).__name__}, not a torch.nn.Module")
        return model

    def default_weights(self) -> Mapping[str, Tensor]:
        """Fetch the published weights of the network.

        Raises:
            UsageError: if there are none for this name.
            CheckpointError: if they cannot be fetched.
        """
        if self.is_file:
            raise UsageError(f"{self.name} has no published weights: give a file, or none")
        family, name = _split(self.name)
        try:
            return family.default_weights(name)
        except (OSError, RuntimeError) as error:
            reason = first_line(error)
            raise CheckpointError(
                f"the default weights of {self.name} cannot be fetched ({reason}): "
                "fetch them elsewhere and give the file"
            ) from error

    def to_dict(self) -> dict[str, Json]:
        """Convert to plain values for JSON."""
        return {"name": self.name, "arguments": dict(self.arguments)}

    @classmethod
    def from_dict(cls, data: object) -> ModelSpec:
        """Read what :meth:`to_dict` returned; nothing is run or imported.

        Raises:
            UsageError: if the data are of another form, or name no network.
        """
        match data:
            case {"name": str(name), "arguments": dict(arguments), **rest} if not rest:
                return cls(name if names_a_file(name) else _known(name), _checked(name, arguments))
        raise UsageError("a network is described by its name and arguments only")

    def _builder(self) -> Callable[..., Any]:
        if self.is_file:
            return find_function(self.name)
        family, name = _split(self.name)
        return lambda **arguments: family.build(name, arguments)


def build(
    spec: str,
    *,
    classes: int | None = None,
    weights: str | Path | Mapping[str, Tensor] | None = None,
    **arguments: Json,
) -> nn.Module:
    """Build a network by name.

    Args:
        spec: ``torchvision:resnet18``, ``timm:resnet50``, ``secateur:digits``, ``secateur:resnet20``,
            ``secateur:resnet56``, a bare torchvision name, ``path/to/file.py:function``, or a network of
            another library: ``hf:FOLDER`` and ``diffusers:FOLDER`` with a ``config.json``,
            ``ultralytics:yolov8n.yaml``, ``smp:Unet/resnet18``.
        classes: number of outputs; the builder's default if not given.
        weights: nothing, ``"default"`` for the published ones, a file, or tensors by name. Tensors that do
            not fit, such as those of a classifier for other classes, keep their initial values; to learn
            which, call :func:`load_weights` yourself.
        arguments: further keyword arguments of the builder, such as ``dropout=0.2``.

    Returns:
        The network, in training mode.

    Raises:
        UsageError: if the name or an argument is wrong.
        CheckpointError: if the weights cannot be fetched, or none of them fits.

    >>> build("secateur:digits", classes=4).classifier[-1].out_features
    4
    """
    model_spec = ModelSpec.parse(spec, classes=classes, **arguments)
    model = model_spec.build()
    if weights is not None:
        load_weights(model, model_spec.default_weights() if weights == "default" else weights)
    return model


def _split(name: str) -> tuple[Family, str]:
    origin, _, rest = name.partition(":")
    return FAMILIES[origin], rest


def _known(text: str) -> str:
    """Return the full name of a network that exists."""
    origin, colon, name = text.partition(":")
    if not colon:
        origin, name = "torchvision", text
    if origin not in FAMILIES:
        raise UsageError(
            f"no networks from {origin!r}: choose {', '.join(FAMILIES)} or path/to/file.py:function"
        )
    if FAMILIES[origin].known(name):
        return f"{origin}:{name}"
    candidates = {known: f"{origin}:{known}" for known in FAMILIES[origin].names()}
    if not colon:
        candidates |= {known: f"secateur:{known}" for known in FAMILIES["secateur"].names()}
    raise UsageError(f"{origin} has no network {name!r}{closest(name, candidates)}")


def _checked(name: str, arguments: Mapping[str, object]) -> dict[str, Any]:
    for key, value in arguments.items():
        if key.startswith(_REFUSED):
            raise UsageError(f"{name}: argument {key!r} is not passed on; give weights as weights=")
        if not _is_plain(value):
            raise UsageError(f"{name}: argument {key!r} must be a number, text, or a list of them")
    return dict(arguments)


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)
