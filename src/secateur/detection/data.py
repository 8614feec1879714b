"""Check a data file of ultralytics, and read images for scores, curves and reconstruction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from secateur.errors import UsageError
from secateur.formats import first_line
from secateur.integrations.libraries import library

_LABELS = "labels are expected in a folder 'labels' beside 'images', one .txt file for each image"


def check_data(path: str | Path) -> dict[str, Any]:
    """Read a data file (``data.yaml``) and check what it names; nothing is downloaded or run.

    Args:
        path: the file, with ``path``, ``train``, ``val``, ``names`` and perhaps ``test``.

    Returns:
        Its content.

    Raises:
        UsageError: it is not there, is not such a file, or names folders that are not there.
    """
    path = Path(path)
    if not path.is_file() or path.suffix not in (".yaml", ".yml"):
        raise UsageError(f"--data {path}: not a data.yaml; give the file that lists train, val and names")
    try:
        content = library("ultralytics.utils").YAML.load(path)
    except Exception as error:
        raise UsageError(f"{path} cannot be read as YAML: {first_line(error)}") from error
    missing = [name for name in ("train", "val", "names") if not content.get(name)]
    if missing:
        raise UsageError(f"{path} has no {' and no '.join(missing)}; train, val and names are needed")
    if not isinstance(content["names"], list | dict):
        raise UsageError(f"{path}: names: {content['names']!r} is no list of the names of the classes")
    root = Path(content.get("path") or path.parent)
    if not root.is_absolute() and not root.exists():
        root = path.parent / root
    for split in ("train", "val", "test"):
        for folder in _listed(content.get(split)):
            # Files of Roboflow name ../train where train lies beside them; ultralytics accepts it.
            if not any((root / place).exists() for place in (folder, folder.removeprefix("../"))):
                raise UsageError(
                    f"{path}: {split}: there is no {root / folder}; correct {split} or path in this file "
                    "(nothing is downloaded)"
                )
    return dict(content)


def _listed(value: Any) -> Sequence[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)] if value else []


@dataclass(frozen=True)
class DetectorBatches:
    """Batches of a detector: pairs of images and what the loss reads, the same in each pass.

    Attributes:
        raw: batches of the loader of ultralytics, with 8-bit images.
        dataset: all training images.
        trainer: makes images of values in [0, 1] of them.
    """

    raw: Sequence[Mapping[str, Any]]
    dataset: Any
    trainer: Any

    def __len__(self) -> int:
        return len(self.raw)

    def __iter__(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        for batch in self.raw:
            prepared = self.trainer.preprocess_batch(dict(batch))
            yield prepared["img"], prepared


def calibration_batches(trainer: Any, images: int) -> DetectorBatches:
    """Read training images with the loader and the augmentations of ultralytics, but no mosaics.

    Args:
        trainer: of ultralytics, for the network and its data.
        images: how many to read at most.

    Returns:
        The batches, of equal sizes.

    Raises:
        UsageError: no training image has an object.
    """
    size = min(trainer.batch_size, images)
    try:
        loader = trainer.get_dataloader(trainer.data["train"], batch_size=size, rank=-1, mode="train")
    except ValueError as error:
        raise UsageError(f"{trainer.args.data}: no training image has a file of labels; {_LABELS}") from error
    dataset = loader.dataset
    if hasattr(dataset, "close_mosaic"):
        dataset.close_mosaic(hyp=trainer.args)
    if hasattr(dataset, "labels") and not any(len(label["cls"]) for label in dataset.labels):
        raise UsageError(
            f"{trainer.args.data}: none of the {len(dataset.labels)} training images has an object; {_LABELS}"
        )
    raw: list[Mapping[str, Any]] = []
    for batch in loader:
        if len(batch["img"]) == size:
            raw.append(batch)
        if len(raw) * size >= images:
            break
    if not raw:
        raise UsageError(f"{trainer.args.data}: fewer than {size} training images; give a smaller batch")
    return DetectorBatches(raw, dataset, trainer)


def unusable_images(trainer: Any, split: str) -> tuple[list[str], int]:
    """List the images of a split that ultralytics leaves out, and count those without objects.

    Args:
        trainer: of ultralytics.
        split: ``train`` or ``val``.

    Returns:
        Files that cannot be read or whose labels are wrong, and the number of images without an object.

    Raises:
        UsageError: no image of the split can be used.
    """
    try:
        dataset = trainer.build_dataset(trainer.data[split], mode="val", batch=trainer.batch_size)
    except (ValueError, FileNotFoundError) as error:
        raise UsageError(
            f"{trainer.args.data}: {split}: no image in {trainer.data[split]} can be used: "
            f"{first_line(error)}"
        ) from error
    if not hasattr(dataset, "labels"):
        return [], 0
    used = {str(label["im_file"]) for label in dataset.labels}
    left_out = [file for file in dataset.get_img_files(trainer.data[split]) if file not in used]
    return left_out, sum(not len(label["cls"]) for label in dataset.labels)
