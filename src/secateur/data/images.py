"""Decode images: all into memory if they fit, otherwise each time they are needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from secateur.data.decode import Decoder
from secateur.errors import DataError

Images = Sequence[Tensor]
"""Images by index: uint8, shape (C, h, w), where h and w may differ from one to the next."""

_WORKERS = min(16, os.cpu_count() or 1)  # decoding and scaling run outside Python's lock


class OnDisk(Sequence[Tensor]):
    """Decode images when they are needed.

    Args:
        paths: their files.
        decoder: how to read one.
    """

    def __init__(self, paths: Sequence[Path], decoder: Decoder) -> None:
        self._paths = tuple(paths)
        self._decoder = decoder

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # an integer or a slice, as for any sequence
        if isinstance(index, slice):
            return OnDisk(self._paths[index], self._decoder)
        return self._decoder(self._paths[index])


@dataclass(frozen=True)
class Reading:
    """Store the result of reading files.

    Attributes:
        images: those that could be read, in the order of the files.
        kept: indices of their files.
        failures: for each other file, one line that names it and gives the reason.
    """

    images: Images
    kept: tuple[int, ...]
    failures: tuple[str, ...]


def read(paths: Sequence[Path], decoder: Decoder, memory: int) -> Reading:
    """Read images into memory; if they would not fit, only check that they are images.

    Args:
        paths: files.
        decoder: how to read one.
        memory: largest number of bytes that they may take.

    Returns:
        The images, and what could not be read. Only the beginning of images that stay on
        disk has been checked: an image that is damaged later in the file raises ``DataError`` when it is
        read.
    """
    # Photographs are a little longer than wide.
    in_memory = len(paths) * decoder.channels * decoder.side**2 * 4 / 3 <= memory
    with ThreadPoolExecutor(_WORKERS) as pool:
        results = list(pool.map(_attempt(decoder if in_memory else _look), paths))
    kept = tuple(index for index, result in enumerate(results) if not isinstance(result, DataError))
    failures = tuple(str(result) for result in results if isinstance(result, DataError))
    if in_memory:
        return Reading([result for result in results if isinstance(result, Tensor)], kept, failures)
    return Reading(OnDisk([paths[index] for index in kept], decoder), kept, failures)


def fetch(images: Images, indices: Sequence[int], pool: ThreadPoolExecutor) -> list[Tensor]:
    """Read some of the images, in several threads if they are on disk."""
    if isinstance(images, OnDisk):
        return list(pool.map(images.__getitem__, indices))
    return [images[index] for index in indices]


def make_pool() -> ThreadPoolExecutor:
    """Create a thread pool for :func:`fetch`; its threads start when they are needed."""
    return ThreadPoolExecutor(_WORKERS)


def _attempt(action: Callable[[Path], Tensor | None]) -> Callable[[Path], Tensor | DataError | None]:
    def attempt(path: Path) -> Tensor | DataError | None:
        try:
            return action(path)
        except DataError as error:
            return error

    return attempt


def _look(path: Path) -> None:
    try:
        with Image.open(path):
            return
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, ImportError) as error:
        reason = "the file is empty" if path.stat().st_size == 0 else "it is not an image"
        raise DataError(f"{path}: {reason}") from error
