"""What a reader of some pages has already: images of their own, in folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 20


def images(folder: Path) -> None:
    """Two classes that a network can tell apart: stripes that lie, and stripes that stand."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 20)):
        for name in ("lying", "standing"):
            (folder / "images" / split / name).mkdir(parents=True)
            for number in range(count):
                waves = np.sin(np.arange(SIDE) * generator.uniform(0.5, 1.0) + generator.uniform(0, 6))
                grid = np.broadcast_to(waves if name == "standing" else waves[:, None], (SIDE, SIDE))
                noisy = 127 + 80 * grid[..., None] + generator.normal(0, 30, (SIDE, SIDE, 3))
                image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
                image.save(folder / "images" / split / name / f"{number}.png")


PREPARED: dict[str, Callable[[Path], None]] = {"docs/tutorials/images.md": images}
"""By page."""
