"""Labels of VOC and COCO, converted: boxes are compared with those that were drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from secateur.detection import convert_labels
from secateur.errors import UsageError

WIDTH, HEIGHT = 40, 20
BOXES = {"one": [("cat", 4, 2, 24, 12)], "two": [("dog", 0, 0, 40, 20), ("cat", 10, 5, 20, 15)], "three": []}


def draw(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in BOXES:
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"{name}.png")


def voc(folder: Path) -> Path:
    draw(folder / "JPEGImages")
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for name, boxes in BOXES.items():
        objects = "".join(
            f"<object><name>{label}</name><difficult>0</difficult><bndbox><xmin>{a}</xmin><ymin>{b}</ymin>"
            f"<xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
            for label, a, b, c, d in boxes
        )
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
        (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    for split, names in {"train": "one\nthree\n", "val": "two\n"}.items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(names)
    return folder


def coco(folder: Path) -> Path:
    draw(folder / "pictures")
    (folder / "annotations").mkdir()
    ids = {"cat": 7, "dog": 3}
    for split, names in {"train2017": ("one", "three"), "val2017": ("two",)}.items():
        images = [
            {"id": number, "file_name": f"{name}.png", "width": WIDTH, "height": HEIGHT}
            for number, name in enumerate(names)
        ]
        annotations = [
            {"image_id": number, "category_id": ids[label], "bbox": [a, b, c - a, d - b], "iscrowd": 0}
            for number, name in enumerate(names)
            for label, a, b, c, d in BOXES[name]
        ]
        categories = [{"id": number, "name": label} for label, number in ids.items()]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


def boxes_of(file: Path) -> list[tuple[int, list[float]]]:
    """Class and edges in pixels, from centre and size as shares."""
    found = []
    for line in file.read_text().splitlines():
        label, x, y, width, height = map(float, line.split())
        edges = [
            (x - width / 2) * WIDTH,
            (y - height / 2) * HEIGHT,
            (x + width / 2) * WIDTH,
            (y + height / 2) * HEIGHT,
        ]
        found.append((int(label), edges))
    return found


@pytest.mark.parametrize("kind", [voc, coco])
def test_boxes_survive(kind: object, tmp_path: Path) -> None:
    done = convert_labels(kind(tmp_path / "in"), tmp_path / "out")  # type: ignore[operator]
    assert done.images == {"train": 2, "val": 1, "test": 0}
    assert done.broken == ()
    for split, names in {"train": ("one", "three"), "val": ("two",)}.items():
        for name in names:
            assert (tmp_path / "out" / "images" / split / f"{name}.png").resolve().is_file()
            found = boxes_of(tmp_path / "out" / "labels" / split / f"{name}.txt")
            assert [label for label, _ in found] == [["cat", "dog"].index(label) for label, *_ in BOXES[name]]
            for (_, edges), (_, *expected) in zip(found, BOXES[name], strict=True):
                assert edges == pytest.approx(expected, abs=1e-3)
    assert '0: "cat"\n  1: "dog"' in done.data.read_text()


@pytest.mark.parametrize("kind", [voc, coco])
def test_classes_have_the_numbers_of_the_network(kind: object, tmp_path: Path) -> None:
    names = ["dog", "bird", "cat"]
    done = convert_labels(kind(tmp_path / "in"), tmp_path / "out", names)  # type: ignore[operator]
    found = boxes_of(tmp_path / "out" / "labels" / "val" / "two.txt")
    assert [label for label, _ in found] == [names.index(label) for label, *_ in BOXES["two"]]
    assert '0: "dog"\n  1: "bird"\n  2: "cat"' in done.data.read_text()
    with pytest.raises(UsageError, match=r"class 'dog', which the network does not have \(bird, cat\)"):
        convert_labels(tmp_path / "in", tmp_path / "other", ["bird", "cat"])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_or_empty_list_of_images_is_named(split: str, tmp_path: Path) -> None:
    folder = voc(tmp_path / "in")
    listing = folder / "ImageSets" / "Main" / f"{split}.txt"
    listing.write_text("\n")
    with pytest.raises(UsageError, match=f"has no labelled images for {split}$"):
        convert_labels(folder, tmp_path / "out")
    listing.unlink()
    with pytest.raises(UsageError, match=f"there is no .*ImageSets/Main/{split}.txt: write"):
        convert_labels(folder, tmp_path / "out")


def test_broken_labels_are_left_out_and_named(tmp_path: Path) -> None:
    folder = voc(tmp_path / "in")
    (folder / "Annotations" / "three.xml").write_text("<annotation>")
    one = folder / "Annotations" / "two.xml"
    one.write_text(one.read_text().replace("<xmin>0</xmin>", "<xmin>60</xmin>"))
    with pytest.raises(UsageError, match=r"no labelled images for val \(three.xml"):
        convert_labels(folder, tmp_path / "out")
    (folder / "ImageSets" / "Main" / "val.txt").write_text("one\nmissing\n")
    done = convert_labels(folder, tmp_path / "out")
    assert [text.partition(":")[0] for text in done.broken] == ["three.xml", "missing.xml"]


@pytest.mark.parametrize("kind", [voc, coco])
def test_a_box_without_height_leaves_the_other_boxes_of_its_image(kind: object, tmp_path: Path) -> None:
    folder = kind(tmp_path / "in")  # type: ignore[operator]
    places = {"<ymax>20</ymax>": "<ymax>0</ymax>", "[0, 0, 40, 20]": "[0, 0, 40, 0]"}
    for file in [*folder.glob("Annotations/two.xml"), *folder.glob("annotations/*val*.json")]:
        text = file.read_text()
        for old, new in places.items():
            text = text.replace(old, new)
        file.write_text(text)
    done = convert_labels(folder, tmp_path / "out")
    assert done.images == {"train": 2, "val": 1, "test": 0}
    assert [text.rpartition(": ")[2] for text in done.broken] == ["a box of dog at (0, 0) has no height"]
    assert len(boxes_of(tmp_path / "out" / "labels" / "val" / "two.txt")) == 1


@pytest.mark.parametrize("kind", [voc, coco])
def test_a_file_that_is_no_image_is_left_out_and_named(kind: object, tmp_path: Path) -> None:
    folder = kind(tmp_path / "in")  # type: ignore[operator]
    for file in folder.rglob("three.png"):
        file.write_text("no image")
    done = convert_labels(folder, tmp_path / "out")
    assert done.images == {"train": 1, "val": 1, "test": 0}
    assert "three.png cannot be read as an image" in done.broken[0]


def test_a_folder_without_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no labels"):
        convert_labels(tmp_path, tmp_path / "out")
