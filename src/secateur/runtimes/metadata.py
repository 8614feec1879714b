"""Describe an exported network: metadata in its file, which say how inputs are prepared."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from secateur import __version__
from secateur.data.settings import shorter_side
from secateur.errors import UsageError
from secateur.models import InputSpec

KEY = "secateur"
"""Name of Secateur's entry in the metadata of a file."""

_FORMAT = 1
_LONGEST = 16 << 20


@dataclass(frozen=True)
class ExportMetadata:
    """Store what an exported file says about its network.

    Attributes:
        network: what builds it at its full size, or its class.
        weights: how weights are kept: ``float32``, ``float16``, ``bfloat16`` or ``int8``.
        images: size and normalisation of its inputs, if they are images.
        classes: names of its outputs, if known.
        params: number of parameters.
        macs: multiply-accumulates of one example.
        version: of Secateur that wrote the file.

    >>> metadata = ExportMetadata("torchvision:resnet18", images=InputSpec(), classes=("cat", "dog"))
    >>> ExportMetadata.from_json(metadata.to_json()) == metadata
    True
    """

    network: str
    weights: str = "float32"
    images: InputSpec | None = None
    classes: tuple[str, ...] | None = None
    params: int | None = None
    macs: int | None = None
    version: str = __version__

    def to_json(self) -> str:
        """Convert to text, for a file's metadata."""
        data = {
            "format": _FORMAT,
            "version": self.version,
            "network": self.network,
            "weights": self.weights,
            "params": self.params,
            "macs": self.macs,
            "preprocessing": preprocessing(self.images) if self.images else None,
            "classes": self.classes,
        }
        return json.dumps(data, ensure_ascii=True)

    @classmethod
    def from_json(cls, text: str | None) -> ExportMetadata | None:
        """Read metadata from text of any origin.

        Args:
            text: the entry ``secateur`` of a file.

        Returns:
            The metadata; ``None`` if there is none, or it has another form.
        """
        if text is None or len(text) > _LONGEST:
            return None
        try:
            return _read_metadata(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, UsageError):
            return None


def preprocessing(spec: InputSpec) -> dict[str, Any]:
    """List the steps from an image to the input of a network, as plain values.

    Args:
        spec: size and normalisation.

    >>> [step["step"] for step in preprocessing(InputSpec())["steps"]]
    ['colour', 'resize', 'crop', 'scale', 'normalise', 'layout']
    """
    channels, height, width = spec.size
    return {
        "size": list(spec.size),
        "mean": list(spec.mean),
        "std": list(spec.std),
        "steps": [
            {"step": "colour", "to": "RGB" if channels == 3 else "grey"},
            {"step": "resize", "shorter_side": shorter_side(spec), "filter": "bilinear, antialiased"},
            {"step": "crop", "from": "centre", "height": height, "width": width},
            {"step": "scale", "divide_by": 255},
            {"step": "normalise", "subtract": list(spec.mean), "divide_by": list(spec.std)},
            {"step": "layout", "order": "batch, channels, height, width", "type": "float32"},
        ],
    }


def _read_metadata(data: dict[str, Any]) -> ExportMetadata | None:
    if data["format"] != _FORMAT:
        return None
    given, classes = data["preprocessing"], data["classes"]
    spec = None
    if given is not None:
        size, mean, std = (tuple(map(kind, given[key])) for kind, key in _FIGURES)
        spec = InputSpec(size, mean, std)
    return ExportMetadata(
        network=str(data["network"]),
        weights=str(data["weights"]),
        images=spec,
        classes=tuple(map(str, classes)) if classes is not None else None,
        params=_count(data["params"]),
        macs=_count(data["macs"]),
        version=str(data["version"]),
    )


_FIGURES: tuple[tuple[Any, str], ...] = ((int, "size"), (float, "mean"), (float, "std"))


def _count(value: object) -> int | None:
    return int(value) if isinstance(value, int) else None
