"""Store the splits of a data set, and form batches from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from secateur.data.decode import Decoder
from secateur.data.folder import Files, survey
from secateur.data.images import Images, read
from secateur.data.loader import Loader
from secateur.data.settings import Augmentation, DataSettings, shorter_side
from secateur.errors import DataError
from secateur.formats import listed
from secateur.models import InputSpec


@dataclass(frozen=True)
class Split:
    """Store images with their classes.

    Attributes:
        name: ``train``, ``val`` or ``test``.
        images: uint8, shape (C, h, w) each.
        targets: class indices, int64, shape (N,).
        skipped: one line for each file that could not be read.
        files: of the images; none for images that are not in files.
    """

    name: str
    images: Images = field(repr=False)
    targets: Tensor = field(repr=False)
    skipped: tuple[str, ...] = ()
    files: tuple[str, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.targets)

    def counts(self, classes: int) -> tuple[int, ...]:
        """Count the images of each class."""
        return tuple(torch.bincount(self.targets, minlength=classes).tolist())


FEW_IMAGES = 1000
"""Number of training images below which those that a teacher answers are mixed."""


@dataclass(frozen=True)
class ImageData:
    """Store images in classes, split into training, validation and test images.

    Each split is read when it is first used.

    Attributes:
        classes: their names, in the order of the class indices.
        input: size and normalisation of the images in batches.
        settings: batch size, seed and the like.
        augmentation: how training images are augmented.
        readers: the function that reads each split.
    """

    classes: tuple[str, ...]
    input: InputSpec
    settings: DataSettings
    augmentation: Augmentation
    readers: Mapping[str, Callable[[], Split]] = field(repr=False)

    @cached_property
    def train(self) -> Split:
        """Return the training images."""
        return self.readers["train"]()

    @cached_property
    def validation(self) -> Split:
        """Return the validation images: ``val/``, or a part held out of ``train/``; none, if none is."""
        if "val" not in self.readers:
            return Split("val", (), torch.empty(0, dtype=torch.int64))
        return self.readers["val"]()

    @cached_property
    def test(self) -> Split:
        """Return the test images: ``test/``, or ``val/`` where there is none."""
        same = self.readers["test"] is self.readers.get("val")
        return self.validation if same else self.readers["test"]()

    @property
    def skipped(self) -> tuple[str, ...]:
        """Return one line for each file that could not be read, of the splits read so far."""
        read_so_far = {id(split): split for split in vars(self).values() if isinstance(split, Split)}
        return tuple(line for split in read_so_far.values() for line in split.skipped)

    def training_batches(self, *, augment: bool = True, taught: bool = False) -> Loader:
        """Return shuffled, augmented training batches; a last batch that is not full is left out.

        Args:
            augment: whether images are augmented; if not, the centre of each is used.
            taught: whether a teacher answers them; few images are then mixed, if the settings do not say.
        """
        how = self.augmentation if augment else None
        mixup = self.settings.mixup if augment else 0.0
        if mixup is None:
            mixup = 1.0 if taught and len(self.train) < FEW_IMAGES else 0.0
        return self._loader(self.train, shuffle=True, drop_last=True, augmentation=how, mixup=mixup)

    def validation_batches(self) -> Loader | None:
        """Return batches of all validation images, always in the same order; ``None`` if there are none."""
        return self._loader(self.validation) if len(self.validation) else None

    def test_batches(self) -> Loader:
        """Return batches of all test images, always in the same order."""
        return self._loader(self.test)

    def _loader(
        self,
        split: Split,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        augmentation: Augmentation | None = None,
        mixup: float = 0.0,
    ) -> Loader:
        return Loader(
            images=split.images,
            targets=split.targets,
            input=self.input,
            batch_size=self.settings.batch_size,
            seed=self.settings.seed,
            shuffle=shuffle,
            augmentation=augmentation,
            mixup=mixup,
            drop_last=drop_last,
        )


def open_folder(
    root: str | Path, spec: InputSpec, settings: DataSettings | None = None, *, training: bool = True
) -> ImageData:
    """Open a folder of images: ``train/<class>/*``, and ``val/`` or ``test/`` or both of the same form.

    Validation and test images are kept separate: without ``val/``, a part of ``train/`` is held out for
    validation, and ``test/`` is used only for the reported figures. Without ``test/``, ``val/`` is used for
    both.

    Args:
        root: the folder.
        spec: size and normalisation that the network expects.
        settings: batch size, seed and the like.
        training: whether ``train/`` is needed; evaluating a network needs only ``test/`` or ``val/``.

    Returns:
        The data set; images are decoded when their split is first used.

    Raises:
        DataError: a split is missing, a class is empty, or the classes differ between splits; later, when a
            split is read, if no image of a class can be read or, with ``strict``, if any cannot.
    """
    settings = settings or DataSettings()
    decoder = Decoder(spec.size[0], shorter_side(spec))
    layout = survey(Path(root), held_out=settings.held_out, training=training)
    by_files = {
        id(files): _SplitReader(files, layout.classes, decoder, settings) for files in layout.splits.values()
    }
    readers = {name: by_files[id(files)] for name, files in layout.splits.items()}
    how = settings.augmentation or Augmentation.suited_to(spec)
    return ImageData(layout.classes, spec, settings, how, readers)


@dataclass(frozen=True)
class _SplitReader:
    """Decode one split."""

    files: Files
    classes: tuple[str, ...]
    decoder: Decoder
    settings: DataSettings

    def __call__(self) -> Split:
        reading = read(self.files.paths, self.decoder, self.settings.memory)
        if reading.failures and self.settings.strict:
            raise DataError(f"{len(reading.failures)} unreadable: {listed(reading.failures, separator='; ')}")
        targets = torch.tensor([self.files.targets[index] for index in reading.kept], dtype=torch.int64)
        files = tuple(str(self.files.paths[index]) for index in reading.kept)
        split = Split(self.files.name, reading.images, targets, reading.failures, files)
        for name, count in zip(self.classes, split.counts(len(self.classes)), strict=True):
            if not count:
                reasons = listed(split.skipped, separator="; ")
                raise DataError(f"no image of class {name!r} in {split.name} can be read: {reasons}")
        return split
