"""Decode image files of any colours, depth and orientation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from secateur.errors import DataError, UsageError
from secateur.formats import first_line

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
    | {".pbm", ".pnm", ".tga", ".avif", ".jp2"}
)
_MODES = {1: "L", 3: "RGB"}
_LONGEST = 2  # times the shorter side; a network only receives the centre of a panorama


@dataclass(frozen=True)
class Decoder:
    """Read an image at the size and with the colours that a network needs.

    Attributes:
        channels: 3 for colour, 1 for grey.
        side: pixels of the shorter side after scaling; the sides keep their ratio up to 2.
    """

    channels: int
    side: int

    def __post_init__(self) -> None:
        if self.channels not in _MODES:
            raise UsageError(f"images have 1 or 3 channels, but the network takes {self.channels}")

    def __call__(self, path: Path) -> Tensor:
        """Return the pixels, uint8, shape (channels, height, width).

        Raises:
            DataError: if the file cannot be read as an image; the message gives the reason.
        """
        try:
            if path.stat().st_size == 0:
                raise DataError("the file is empty")
            with Image.open(path) as image:
                # JPEG files can be decoded at a fraction of their size, which is much faster.
                image.draft(None, (self.side, self.side))
                return self._pixels(image)
        except Exception as error:  # foreign bytes fail in many ways
            unknown = "cannot identify" in str(error) or isinstance(error, ImportError)
            reason = "it is not an image" if unknown else first_line(error)
            raise DataError(f"{path}: {reason or type(error).__name__}") from error

    def _pixels(self, image: Image.Image) -> Tensor:
        image = ImageOps.exif_transpose(image)
        image = _opaque(image).convert(_MODES[self.channels])
        pixels = np.array(self._scaled(image))
        return (
            torch.from_numpy(pixels.reshape(*pixels.shape[:2], self.channels)).permute(2, 0, 1).contiguous()
        )

    def _scaled(self, image: Image.Image) -> Image.Image:
        scale = self.side / min(image.size)
        width, height = (max(self.side, round(length * scale)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3.0)
        longest = self.side * _LONGEST
        left, top = max(0, width - longest) // 2, max(0, height - longest) // 2
        return image.crop((left, top, width - left, height - top)) if left or top else image


def is_image(path: Path) -> bool:
    """Return whether a file is an image, by its extension or else by its first bytes.

    >>> is_image(Path("cat.JPG")), is_image(Path(__file__))
    (True, False)
    """
    if path.suffix.lower() in EXTENSIONS:
        return True
    try:
        with Image.open(path):
            return True
    except (OSError, ValueError, Image.DecompressionBombError, ImportError):
        return False  # other packages patch ``Image.open`` to look for decoders that may not be installed


def _opaque(image: Image.Image) -> Image.Image:
    """Convert an image to 8 bits a channel, with transparent parts on white."""
    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image)
    return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale grey values of more than 8 bits down; plain conversion would clip them."""
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        deepest = 1.0 if values.max() <= 1 else 255.0
    else:
        deepest = 65535.0 if image.mode.startswith("I;16") or values.max() > 255 else 255.0
    return Image.fromarray((values / deepest * 255).round().clip(0, 255).astype(np.uint8))
