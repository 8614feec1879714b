"""Check a data file of ultralytics, and read images for scores, curves and reconstruction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from secateur.detection.labels import (
    IMAGE_ENDINGS,
    SPLITS,
    DetectionData,
    LabelledImage,
    LabelledObject,
    checked_box,
    checked_image,
    checked_labels,
    is_labelled_folder,
    read_labels,
    usable_objects,
)
from secateur.errors import DataError, UsageError
from secateur.formats import first_line, listed
from secateur.integrations.libraries import library

DATA_FILE = "data.yaml"

_LABELS = "labels are expected in a folder 'labels' beside 'images', one .txt file for each image"


def check_data(path: str | Path) -> dict[str, Any]:
    """Read a data file (``data.yaml``) and check what it names; nothing is downloaded or run.

    Args:
        path: the file, with ``train``, ``val``, ``names`` and perhaps ``path`` and ``test``. A relative
            ``path`` is looked for beside the file, then in the current folder.

    Returns:
        Its content; ``path`` is absolute.

    Raises:
        UsageError: it is not there, is not such a file, or names folders that are not there.
    """
    path = Path(path)
    if (path / DATA_FILE).is_file():
        raise UsageError(f"--data {path}: this folder holds a {DATA_FILE}; give --data {path / DATA_FILE}")
    if not path.is_file() or path.suffix not in (".yaml", ".yml"):
        raise UsageError(f"--data {path}: not a data.yaml; give the file that lists train, val and names")
    try:
        content = library("yaml").safe_load(path.read_text(encoding="utf-8"))
    except Exception as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or first_line(error)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        raise UsageError(f"{path} cannot be read as YAML: {where}{reason}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds no settings; it needs train, val and names")
    missing = [name for name in ("train", "val", "names") if not content.get(name)]
    if missing:
        raise UsageError(f"{path} has no {' and no '.join(missing)}; train, val and names are needed")
    if not isinstance(content["names"], list | dict):
        raise UsageError(f"{path}: names: {content['names']!r} is no list of the names of the classes")
    content["path"] = str(_root(path, str(content.get("path") or ".")))
    for split in SPLITS:
        for folder in _listed(content.get(split)):
            if not _place(content, folder).exists():
                raise UsageError(
                    f"{path}: {split}: there is no {_place(content, folder)}; correct {split} or path in "
                    "this file (nothing is downloaded)"
                )
    return dict(content)


def check_image_folder(folder: str | Path, names: Sequence[str] | None) -> Path:
    """Check a folder of images by class, as classifiers of ultralytics read it.

    Args:
        folder: with ``train/`` and ``val/`` or ``test/``, each with a folder for each class.
        names: the classes of the network, if they are known.

    Returns:
        The folder.

    Raises:
        UsageError: it is no such folder, or has other classes.
    """
    folder = Path(folder)
    train = folder / "train"
    if not train.is_dir() or not any((folder / split).is_dir() for split in ("val", "test")):
        raise UsageError(
            f"--data {folder}: a classifier needs a folder with train/ and val/ or test/, each with a folder "
            "of images per class"
        )
    found = sorted(place.name for place in train.iterdir() if place.is_dir())
    if names is not None and found != list(names):
        raise UsageError(
            f"{train} has the classes {listed(found)}, the network has {listed(names)}; train the unpruned "
            "network on these data first"
        )
    return folder


def class_names(content: Mapping[str, Any]) -> list[str]:
    """List the names of the classes in a data file, by their numbers."""
    names = content["names"]
    return [str(name) for name in (names.values() if isinstance(names, dict) else names)]


def names_of(network: nn.Module) -> list[str] | None:
    """List the names of a network's classes; ``None`` if it has only numbers for them."""
    names = [str(name) for name in (getattr(network, "names", None) or {}).values()]
    return None if all(name.isdigit() for name in names) else names


def check_classes(network: nn.Module, content: Mapping[str, Any], data: str | Path) -> None:
    """Refuse data of other classes than those of a network.

    Args:
        network: of ultralytics.
        content: of the data file, with ``names``.
        data: the file, for messages.

    Raises:
        UsageError: their number, names or order differ.
    """
    wanted = class_names(content)
    classes = len(getattr(network, "names", None) or ()) or getattr(network, "nc", len(wanted))
    if classes != len(wanted):
        raise UsageError(
            f"the network has {classes} classes, {data} has {len(wanted)} ({', '.join(wanted)}); "
            "train the unpruned network on these data first, then prune it"
        )
    known = names_of(network)
    if known is not None and known != wanted:
        other = next((one, two) for one, two in zip(known, wanted, strict=True) if one != two)
        raise UsageError(
            f"the network calls a class {other[0]!r} that {data} calls {other[1]!r}; correct names in "
            "this file"
        )


def with_absolute_path(path: Path, content: Mapping[str, Any], out: Path) -> Path:
    """Return a data file whose ``path`` is absolute: the given one, or a copy in a folder.

    Ultralytics looks for a relative path in the current folder, then in one of its settings.

    Args:
        path: the file.
        content: what :func:`check_data` found in it.
        out: the folder.
    """
    if library("yaml").safe_load(path.read_text(encoding="utf-8")).get("path") in (None, content["path"]):
        return path
    file = out / DATA_FILE
    file.write_text(library("yaml").safe_dump(dict(content)), encoding="utf-8")
    return file


def beside(file: str, out: Path) -> str:
    """Make the relative ``path`` in a data file absolute where it is found beside the file.

    Other files are left to ultralytics, which finds data sets by name, or downloads them.

    Args:
        file: what was given to ultralytics as data.
        out: where a changed copy is written.

    Returns:
        The file, or its copy.
    """
    path = Path(file)
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        return file
    yaml = library("yaml")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        root = path.parent / content["path"]
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return file  # ultralytics reports what is wrong with it
    if not root.exists():
        return file
    out.mkdir(parents=True, exist_ok=True)
    return str(with_absolute_path(path, {**content, "path": str(root.resolve())}, out))


def read_yolo_labels(path: str | Path, names: Sequence[str] | None = None) -> DetectionData:
    """Read the images that a data file lists, with their labels in text files.

    Args:
        path: the file, as for :func:`check_data`.
        names: the classes of the network, in its order; by default those of the file.

    Returns:
        The images, and what could not be used. An image without a text file has no objects.

    Raises:
        UsageError: the file cannot be used, or has other classes than the network.
    """
    content = check_data(path)
    known, broken = class_names(content), list[str]()
    splits = {
        split: [
            image
            for folder in _listed(content.get(split))
            for file in _files(_place(content, folder))
            for image in _labelled(file, known, broken)
        ]
        for split in SPLITS
    }
    return checked_labels(Path(path), splits, known if names is None else names, broken)


def read_any_labels(source: str | Path, names: Sequence[str] | None = None) -> DetectionData:
    """Read a VOC or COCO folder, or the images that a ``data.yaml`` lists.

    Args:
        source: the folder or file.
        names: the classes of the network, in its order; by default those of the labels.

    Raises:
        UsageError: it cannot be used.
    """
    if is_labelled_folder(source):
        return read_labels(source, names)
    return read_yolo_labels(source, names)


def _root(path: Path, place: str) -> Path:
    """Resolve the path in a data file: beside the file, or in the current folder."""
    beside = path.parent / place
    return (beside if beside.exists() or not Path(place).exists() else Path(place)).resolve()


def _place(content: Mapping[str, Any], folder: str) -> Path:
    """Resolve an entry of a data file.

    Files of Roboflow name ``../train`` where ``train`` lies beside them; ultralytics accepts it.
    """
    root = Path(content["path"])
    plain = root / folder.removeprefix("../")
    return plain if plain.exists() else root / folder


def _listed(value: Any) -> Sequence[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)] if value else []


def _files(place: Path) -> list[Path]:
    """List the images in a folder, or in a text file that names them."""
    if place.is_dir():
        found: Iterator[Path] = place.rglob("*")
    else:
        lines = place.read_text(encoding="utf-8").split("\n")
        found = iter([place.parent / line.strip() for line in lines if line.strip()])
    return sorted(file for file in found if file.suffix.lower() in IMAGE_ENDINGS)


def _labelled(file: Path, names: Sequence[str], broken: list[str]) -> Iterator[LabelledImage]:
    """Read an image's size and its labels: a class and centre, width and height, or a polygon, as shares."""
    parts = list(file.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    text = Path(*parts).with_suffix(".txt")
    try:
        size = checked_image(file)
        lines = text.read_text(encoding="utf-8").split("\n") if text.is_file() else []
        read = partial(_object, names=names, size=size)
        objects = usable_objects(filter(str.strip, lines), read, file.name, broken)
    except (OSError, ValueError, DataError) as error:
        broken.append(f"{file.name}: {first_line(error)}")
    else:
        yield LabelledImage(file, size, objects)


def _object(line: str, names: Sequence[str], size: tuple[float, float]) -> LabelledObject:
    label, *places = map(float, line.split())
    if label not in range(len(names)):
        raise DataError(f"class {label:g} of {len(names)} (counted from 0)")
    if len(places) == 4:
        x, y, width, height = places
        xs, ys = [x - width / 2, x + width / 2], [y - height / 2, y + height / 2]
    else:
        xs, ys = places[::2], places[1::2]
    if len(places) < 4 or len(places) % 2 or not all(-1e-3 <= place <= 1 + 1e-3 for place in places):
        raise DataError(f"{line.strip()!r} is no class with shares of width and height")
    edges = [min(xs) * size[0], min(ys) * size[1], max(xs) * size[0], max(ys) * size[1]]
    return checked_box(names[int(label)], edges, size)


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


def training_images(trainer: Any, size: int, source: str | Path | None = None) -> Any:
    """Open the training images with the loader and the augmentations of ultralytics, but no mosaics.

    Args:
        trainer: of ultralytics, for the network and its data.
        size: images in a batch.
        source: the data in the words of the user, for messages; the file that was given to the trainer if not
            given.

    Returns:
        The loader.

    Raises:
        UsageError: no training image has an object.
    """
    source = source or trainer.args.data
    try:
        loader = trainer.get_dataloader(trainer.data["train"], batch_size=size, rank=-1, mode="train")
    except ValueError as error:
        raise UsageError(f"{source}: no training image has a file of labels; {_LABELS}") from error
    dataset = loader.dataset
    if hasattr(dataset, "close_mosaic"):
        dataset.close_mosaic(hyp=trainer.args)
    if hasattr(dataset, "labels") and not any(len(label["cls"]) for label in dataset.labels):
        raise UsageError(
            f"{source}: none of the {len(dataset.labels)} training images has an object; {_LABELS}"
        )
    return loader


def calibration_batches(trainer: Any, images: int, source: str | Path | None = None) -> DetectorBatches:
    """Read training images for scores, curves and reconstruction.

    Args:
        trainer: of ultralytics, for the network and its data.
        images: how many to read at most.
        source: the data in the words of the user, for messages; the file that was given to the trainer if not
            given.

    Returns:
        The batches, of equal sizes.

    Raises:
        UsageError: as for :func:`training_images`.
    """
    size = min(trainer.batch_size, images)
    loader = training_images(trainer, size, source)
    size = min(size, len(loader.dataset))
    raw: list[Mapping[str, Any]] = []
    for batch in loader:
        if len(batch["img"]) == size:
            raw.append(batch)
        if len(raw) * size >= images:
            break
    return DetectorBatches(raw, loader.dataset, trainer)


@dataclass(frozen=True)
class ImageFaults:
    """What is wrong with images of a split as ultralytics reads them.

    Attributes:
        images: number of images that are used.
        left_out: files that cannot be read or whose labels are wrong, which ultralytics leaves out.
        flat: images with boxes without width or height, which ultralytics keeps.
        empty: number of images without an object.
    """

    images: int
    left_out: Sequence[str] = ()
    flat: Sequence[str] = ()
    empty: int = 0


def image_faults(trainer: Any, split: str, source: str | Path | None = None) -> ImageFaults:
    """Find what is wrong with the images of a split, as ultralytics reads them.

    Args:
        trainer: of ultralytics.
        split: ``train`` or ``val``.
        source: the data in the words of the user, for messages; the file that was given to the trainer if not
            given.

    Raises:
        UsageError: no image of the split can be used.
    """
    source = source or trainer.args.data
    try:
        dataset = trainer.build_dataset(trainer.data[split], mode="val", batch=trainer.batch_size)
    except (ValueError, FileNotFoundError) as error:
        raise UsageError(
            f"{source}: {split}: no image in {trainer.data[split]} can be used: {first_line(error)}"
        ) from error
    if not hasattr(dataset, "labels"):
        return ImageFaults(len(dataset))
    used = {str(label["im_file"]) for label in dataset.labels}
    return ImageFaults(
        images=len(dataset.labels),
        left_out=[file for file in dataset.get_img_files(trainer.data[split]) if file not in used],
        flat=[
            str(label["im_file"])
            for label in dataset.labels
            if (label["bboxes"].reshape(-1, 4)[:, 2:] == 0).any()
        ],
        empty=sum(not len(label["cls"]) for label in dataset.labels),
    )
