"""Find the splits, classes and files of a folder of images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from secateur.data.decode import is_image
from secateur.errors import DataError
from secateur.formats import listed


@dataclass(frozen=True)
class Files:
    """List the images of one split.

    Attributes:
        name: of the split, for messages.
        paths: files, sorted within each class.
        targets: index of the class of each.
    """

    name: str
    paths: tuple[Path, ...]
    targets: tuple[int, ...]


@dataclass(frozen=True)
class FolderLayout:
    """List the content of a folder.

    Attributes:
        classes: names of the classes, sorted, in the order of the class indices.
        splits: by name; ``train`` is there unless it was not needed, and ``test`` always.
            ``val`` is there if it is in the folder, or else a held-out part of ``train``, unless nothing is
            held out.
    """

    classes: tuple[str, ...]
    splits: Mapping[str, Files]


def survey(root: Path, *, held_out: float, training: bool = True) -> FolderLayout:
    """List the images of a folder without decoding any.

    Which images are held out of ``train/`` depends only on the folder: a network that was trained on
    it, and is pruned on it with another seed, must not be evaluated on images that it was trained on.

    Args:
        root: contains ``train/``, and ``val/`` or ``test/`` or both; each contains one folder per class.
        held_out: share of ``train/`` held out for validation if there is no ``val/``; 0 for no validation.
        training: whether ``train/`` is needed; evaluating a network needs only ``test/`` or ``val/``.

    Returns:
        Splits and classes. If there is no ``test/``, ``val/`` is used as the test split.

    Raises:
        DataError: a split is missing, a class is empty, or the classes differ between splits.
    """
    if not root.is_dir():
        raise DataError(f"no folder {root}: give a folder with train/ and val/ or test/ in it")
    wanted = ("train", "val", "test") if training else ("val", "test")
    found = {name: _split(root / name) for name in wanted if (root / name).is_dir()}
    if training and "train" not in found:
        raise DataError(f"no train/ folder in {root}: put a folder of images for each class into train/")
    if not {"val", "test"} & found.keys():
        raise DataError(f"neither val/ nor test/ in {root}: accuracy cannot be measured on train/ itself")
    classes = _same_classes(root, found)
    splits = {name: _files(name, by_class) for name, by_class in found.items()}
    if training and "val" not in splits and held_out:
        splits["train"], splits["val"] = _hold_out(splits["train"], held_out)
    splits.setdefault("test", splits.get("val", splits.get("test")))  # type: ignore[arg-type]  # one is there
    return FolderLayout(classes, splits)


def _split(folder: Path) -> dict[str, tuple[Path, ...]]:
    """List the images of each class; folders within a class are searched too, and links are followed."""
    names = sorted(child.name for child in folder.iterdir() if child.is_dir() and child.name[0] != ".")
    if len(names) < 2:
        have = f"only {names[0]}" if names else "none"
        raise DataError(f"{folder} needs a folder for each of two or more classes, but has {have}")
    return {name: _class(folder / name) for name in names}


def _class(folder: Path) -> tuple[Path, ...]:
    files = [path for path in _walk(folder, frozenset()) if not path.name.startswith(".")]
    images = tuple(sorted(path for path in files if is_image(path)))
    if not images:
        have = f"none of the {len(files)} files in {folder} is an image" if files else f"no file in {folder}"
        raise DataError(f"class {folder.name!r} is empty: {have}")
    return images


def _walk(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    """List the files in a folder and below it; links are followed, but no folder twice."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            yield from _walk(entry, above | {real})
        else:
            yield entry


def _same_classes(root: Path, found: Mapping[str, Mapping[str, object]]) -> tuple[str, ...]:
    first, *others = found
    for other in others:
        for this, that in ((first, other), (other, first)):
            lacking = tuple(sorted(found[this].keys() - found[that].keys()))
            if lacking:
                raise DataError(f"{root / that} lacks classes that {this}/ has: {listed(lacking)}")
    return tuple(found[first])


def _files(name: str, by_class: Mapping[str, tuple[Path, ...]]) -> Files:
    paths = tuple(path for images in by_class.values() for path in images)
    targets = tuple(target for target, images in enumerate(by_class.values()) for _ in images)
    return Files(name, paths, targets)


def _hold_out(files: Files, share: float) -> tuple[Files, Files]:
    """Split off a share of each class; return the rest and the share."""
    for target, count in Counter(files.targets).items():
        if count < 2:
            folder = files.paths[files.targets.index(target)].parent
            raise DataError(f"{folder} has one image, so none can be held out: add images, or a val/")
    held = set(held_out_indices(files.targets, share))
    kept = [index for index in range(len(files.paths)) if index not in held]
    return _pick(files, "train", kept), _pick(files, "val", sorted(held))


def held_out_indices(targets: tuple[int, ...], share: float) -> list[int]:
    """Choose a random share of each class, the same at every call, at least one and never all of it.

    Args:
        targets: class index of each example.
        share: of each class, between 0 and 1.

    Returns:
        Indices of the chosen examples.
    """
    generator = np.random.default_rng([0, len(targets)])
    labels = np.asarray(targets)
    chosen: list[int] = []
    for target in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == target))
        count = min(max(1, round(share * len(members))), len(members) - 1)
        chosen += members[:count].tolist()
    return chosen


def _pick(files: Files, name: str, indices: list[int]) -> Files:
    return Files(name, tuple(files.paths[i] for i in indices), tuple(files.targets[i] for i in indices))
