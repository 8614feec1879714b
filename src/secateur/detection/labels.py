"""Read labelled images (VOC XML, COCO JSON, YOLO text), and write them in the format of ultralytics."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree as ET

from secateur.errors import DataError, UsageError
from secateur.formats import first_line

SPLITS = ("train", "val", "test")
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")

T = TypeVar("T")


class FlatBoxError(DataError):
    """A box has no width or no height; the other boxes of its image can be used."""


LabelledObject = tuple[str, float, float, float, float]
"""The class of an object, and its left, top, right and bottom edge in pixels."""


@dataclass(frozen=True)
class LabelledImage:
    """An image with its objects.

    Attributes:
        file: the image.
        size: width and height in pixels.
        objects: of each object the class, and left, top, right and bottom edge in pixels.
    """

    file: Path
    size: tuple[float, float]
    objects: tuple[LabelledObject, ...]


@dataclass(frozen=True)
class DetectionData:
    """Images with their objects.

    Attributes:
        splits: images by ``train``, ``val`` and ``test``; the latter may be empty.
        names: of the classes.
        broken: what could not be used: file and reason.
    """

    splits: Mapping[str, Sequence[LabelledImage]]
    names: tuple[str, ...]
    broken: tuple[str, ...] = ()


@dataclass(frozen=True)
class Converted:
    """Converted labels.

    Attributes:
        data: the data file.
        images: number of images by split.
        broken: what could not be used: file and reason.
    """

    data: Path
    images: Mapping[str, int]
    broken: tuple[str, ...] = field(default=())


def is_labelled_folder(folder: str | Path) -> bool:
    """Return whether a folder holds VOC (``Annotations/``) or COCO (``annotations/*.json``) labels."""
    folder = Path(folder)
    return (folder / "Annotations").is_dir() or any(folder.glob("annotations/*.json"))


def read_labels(folder: str | Path, names: Sequence[str] | None = None) -> DetectionData:
    """Read the labels of a VOC or COCO folder.

    VOC: ``Annotations/*.xml``, ``JPEGImages/`` (or ``images/``) and ``ImageSets/Main/{train,val,test}.txt``.
    COCO: ``annotations/*train*.json``, ``*val*.json`` and perhaps ``*test*.json``; images are looked for in
    all folders within. Objects that are marked as difficult (VOC) or as a crowd (COCO) are left out.

    So are boxes without width or height; the image stays.

    Args:
        folder: the labelled images.
        names: the classes of the network, in its order; by default those of the labels, sorted.

    Returns:
        The images, and what could not be used.

    Raises:
        UsageError: the folder holds neither kind of labels, lacks training or validation images, or has a
            class that is not among ``names``.
    """
    folder = Path(folder)
    broken: list[str] = []
    if (folder / "Annotations").is_dir():
        splits = {split: list(_voc(folder, split, broken)) for split in SPLITS}
    elif any(folder.glob("annotations/*.json")):
        splits = {split: list(_coco(folder, split, broken)) for split in SPLITS}
    else:
        raise UsageError(
            f"{folder} holds no labels: give a data.yaml, a folder with Annotations/*.xml (VOC), or one with "
            "annotations/*.json (COCO)"
        )
    return checked_labels(folder, splits, names, broken)


def checked_labels(
    source: Path,
    splits: Mapping[str, Sequence[LabelledImage]],
    names: Sequence[str] | None,
    broken: Sequence[str],
) -> DetectionData:
    """Check that there are images to train and to validate on, with classes that the network has.

    Args:
        source: the file or folder, for messages.
        splits: images by split.
        names: the classes of the network; by default those of the labels, sorted.
        broken: what could not be used.

    Raises:
        UsageError: they cannot be used.
    """
    first = f" ({broken[0]})" if broken else ""
    for split in SPLITS[:2]:
        if not splits[split]:
            raise UsageError(f"{source} has no labelled images for {split}{first}")
    labels = sorted({label for images in splits.values() for image in images for label, *_ in image.objects})
    names = labels if names is None else names
    if unknown := [label for label in labels if label not in names]:
        raise UsageError(
            f"{source} has labels of the class {unknown[0]!r}, which the network does not have "
            f"({', '.join(names)}); rename it, or train the unpruned network on these data first"
        )
    if not any(image.objects for image in splits["train"]):
        raise UsageError(f"{source}: no training image has an object{first}")
    return DetectionData(splits, tuple(names), tuple(broken))


def convert_labels(folder: str | Path, out: str | Path, names: Sequence[str] | None = None) -> Converted:
    """Write the labels of a VOC or COCO folder as ultralytics reads them, with links to the images.

    Args:
        folder: as for :func:`read_labels`; not changed.
        out: where to write ``images/``, ``labels/`` and ``data.yaml``; created if missing.
        names: as for :func:`read_labels`.

    Returns:
        The data file, and what could not be used.

    Raises:
        UsageError: as for :func:`read_labels`; nothing is written then.
    """
    found, out = read_labels(folder, names), Path(out)
    for split, images in found.splits.items():
        for image in images:
            _write(image, found.names, out, split)
    listed = "".join(f"  {number}: {json.dumps(name)}\n" for number, name in enumerate(found.names))
    paths = "".join(f"{split}: images/{split}\n" for split in SPLITS if found.splits[split])
    data = out / "data.yaml"
    data.write_text(f"path: {json.dumps(str(out.resolve()))}\n{paths}names:\n{listed}", encoding="utf-8")
    return Converted(data, {split: len(images) for split, images in found.splits.items()}, found.broken)


def _write(image: LabelledImage, names: Sequence[str], out: Path, split: str) -> None:
    """Link an image and write its labels: class, centre and size of each box, as shares of the image."""
    for kind in ("images", "labels"):
        (out / kind / split).mkdir(parents=True, exist_ok=True)
    width, height = image.size
    lines = [
        f"{names.index(label)} {(left + right) / 2 / width:.6f} {(top + bottom) / 2 / height:.6f} "
        f"{(right - left) / width:.6f} {(bottom - top) / height:.6f}\n"
        for label, left, top, right, bottom in image.objects
    ]
    link = out / "images" / split / image.file.name
    link.unlink(missing_ok=True)
    link.symlink_to(image.file.resolve())
    (out / "labels" / split / f"{image.file.stem}.txt").write_text("".join(lines), encoding="utf-8")


def _voc(folder: Path, split: str, broken: list[str]) -> Iterator[LabelledImage]:
    """Read the images of a split of a VOC folder.

    Raises:
        UsageError: no file lists the images to train or to validate on.
    """
    listing = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not listing.is_file():
        if split == "test":
            return
        raise UsageError(f"there is no {listing}: write the names of the {split} images into it, one a line")
    files = {
        file.stem: file
        for place in ("JPEGImages", "images")
        for file in (folder / place).glob("*")
        if file.suffix.lower() in IMAGE_ENDINGS
    }
    for line in listing.read_text(encoding="utf-8").splitlines():
        name = line.split()[0] if line.strip() else ""
        if not name:
            continue
        labels = folder / "Annotations" / f"{name}.xml"
        if name not in files:
            broken.append(f"{labels.name}: there is no image {name}")
            continue
        try:
            yield _voc_image(labels, files[name], broken)
        except (OSError, ET.ParseError, DataError, TypeError, ValueError) as error:
            broken.append(f"{labels.name}: {error}")


def _voc_image(labels: Path, file: Path, broken: list[str]) -> LabelledImage:
    root = ET.parse(labels).getroot()  # no entities are resolved from outside
    width, height = (float(root.findtext(f"size/{side}") or 0) for side in ("width", "height"))
    checked_image(file)
    items = (item for item in root.iter("object") if item.findtext("difficult") != "1")

    def read(item: ET.Element) -> LabelledObject:
        edges = [float(item.findtext(f"bndbox/{edge}") or "") for edge in ("xmin", "ymin", "xmax", "ymax")]
        return checked_box(str(item.findtext("name")), edges, (width, height))

    return LabelledImage(file, (width, height), usable_objects(items, read, labels.name, broken))


def _coco(folder: Path, split: str, broken: list[str]) -> Iterator[LabelledImage]:
    """Read the images of a split of a COCO folder."""
    for file in sorted(folder.glob(f"annotations/*{split}*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            categories = {item["id"]: str(item["name"]) for item in content["categories"]}
            images = {item["id"]: item for item in content["images"]}
            found: dict[Any, list[Mapping[str, Any]]] = {number: [] for number in images}
            for item in content["annotations"]:
                if not item.get("iscrowd"):
                    found[item["image_id"]].append(item)
        except (OSError, ValueError, KeyError, TypeError) as error:
            broken.append(f"{file.name}: {type(error).__name__} {error}")
            continue
        files = {path.name: path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_ENDINGS}
        for number, image in images.items():
            name = Path(str(image["file_name"])).name
            if name not in files:
                broken.append(f"{file.name}: there is no image {name}")
                continue
            size = float(image["width"]), float(image["height"])
            read = partial(_coco_object, categories=categories, size=size)
            try:
                checked_image(files[name])
                objects = usable_objects(found[number], read, f"{file.name}: {name}", broken)
            except (DataError, KeyError, TypeError, ValueError) as error:
                broken.append(f"{file.name}: {name}: {error}")
            else:
                yield LabelledImage(files[name], size, objects)


def _coco_object(
    item: Mapping[str, Any], categories: Mapping[Any, str], size: tuple[float, float]
) -> LabelledObject:
    left, top, width, height = map(float, item["bbox"])
    return checked_box(categories[item["category_id"]], [left, top, left + width, top + height], size)


def checked_image(file: Path) -> tuple[float, float]:
    """Check that an image can be decoded.

    Args:
        file: the image.

    Returns:
        Width and height in pixels.

    Raises:
        DataError: it cannot be decoded.
    """
    from PIL import Image

    try:
        with Image.open(file) as image:
            size = float(image.width), float(image.height)
            image.verify()
        if file.suffix.lower() in (".jpg", ".jpeg") and not file.read_bytes().endswith(b"\xff\xd9"):
            with Image.open(file) as image:  # verify does not notice that the end is missing
                image.load()
    except Exception as error:  # foreign bytes fail in many ways
        raise DataError(f"{file.name} cannot be read as an image: {first_line(error)}") from error
    return size


def usable_objects(
    items: Iterable[T], read: Callable[[T], LabelledObject], place: str, broken: list[str]
) -> tuple[LabelledObject, ...]:
    """Read the objects of an image, and leave out boxes without width or height.

    Args:
        items: of the labels.
        read: makes an object of an item.
        place: where the labels are, for messages.
        broken: receives what was left out.

    Raises:
        DataError: a label is wrong in another way, so that the whole image cannot be used.
    """
    found = []
    for item in items:
        try:
            found.append(read(item))
        except FlatBoxError as error:
            broken.append(f"{place}: {error}")
    return tuple(found)


def checked_box(label: str, edges: Sequence[float], size: tuple[float, float]) -> LabelledObject:
    """Clip a box to its image.

    Args:
        label: its class.
        edges: left, top, right and bottom, in pixels.
        size: width and height of the image.

    Raises:
        FlatBoxError: it has no width or no height.
        DataError: nothing of it is inside the image.
    """
    if edges[0] == edges[2] or edges[1] == edges[3]:
        side = "width" if edges[0] == edges[2] else "height"
        raise FlatBoxError(f"a box of {label} at ({edges[0]:g}, {edges[1]:g}) has no {side}")
    left, right = (min(max(edge, 0.0), size[0]) for edge in (edges[0], edges[2]))
    top, bottom = (min(max(edge, 0.0), size[1]) for edge in (edges[1], edges[3]))
    if left >= right or top >= bottom:
        raise DataError(
            f"a box of {label} from ({edges[0]:g}, {edges[1]:g}) to ({edges[2]:g}, {edges[3]:g}) is empty"
        )
    return label, left, top, right, bottom
