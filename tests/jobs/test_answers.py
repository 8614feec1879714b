from __future__ import annotations

import base64
import io

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from secateur.data.dataset import Split
from secateur.jobs.answers import compare_answers, losses_line

CLASSES = ("ant", "bee", "cow")
ANSWER = st.integers(0, 2)


def split(targets: list[int], channels: int = 3) -> Split:
    images = [
        torch.full((channels, 6, 12), 9 * index % 255, dtype=torch.uint8) for index in range(len(targets))
    ]
    files = tuple(f"test/{index}.jpg" for index in range(len(targets)))
    return Split("test", images, torch.tensor(targets), files=files)


def test_a_small_example_by_hand() -> None:
    targets = [0, 0, 0, 0, 1, 1, 2]
    before = [0, 0, 0, 1, 1, 0, 2]
    after = [0, 1, 2, 1, 1, 1, 2]
    found = compare_answers(split(targets), CLASSES, torch.tensor(before), torch.tensor(after))
    assert found["classes"] == [
        {"name": "ant", "examples": 4, "before": 0.75, "after": 0.25, "change": -0.5},
        {"name": "bee", "examples": 2, "before": 0.5, "after": 1.0, "change": 0.5},
        {"name": "cow", "examples": 1, "before": 1.0, "after": 1.0, "change": 0.0},
    ]
    assert found["confusions"] == [
        {"class": "ant", "other": "bee", "before": 1, "after": 2},
        {"class": "ant", "other": "cow", "before": 0, "after": 1},
    ]
    assert found["changed"] == {"lost": 2, "gained": 1}
    shown = [(image["file"], image["class"], image["before"], image["after"]) for image in found["images"]]
    assert shown == [
        ("test/1.jpg", "ant", "ant", "bee"),
        ("test/2.jpg", "ant", "ant", "cow"),
        ("test/5.jpg", "bee", "ant", "bee"),
    ]
    line = "by class: ant 75.00% to 25.00%; 2 images are wrong now that were right, 1 the other way"
    assert losses_line(found) == line
    same = compare_answers(split(targets), CLASSES, torch.tensor(before), torch.tensor(before))
    assert losses_line(same) is None
    assert same["images"] == same["confusions"] == []


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(ANSWER, ANSWER, ANSWER), min_size=1, max_size=60))
def test_the_parts_add_up(answers: list[tuple[int, int, int]]) -> None:
    targets, before, after = (list(column) for column in zip(*answers, strict=True))
    targets += [0, 1, 2]  # no class is without an image
    before, after = [*before, 0, 1, 2], [*after, 0, 1, 2]
    found = compare_answers(split(targets), CLASSES, torch.tensor(before), torch.tensor(after))
    changed = found["changed"]
    total = sum(round(row["examples"] * row["change"]) for row in found["classes"])
    assert total == changed["gained"] - changed["lost"]
    assert sum(row["examples"] for row in found["classes"]) == len(targets)
    assert len(found["images"]) <= min(24, changed["lost"] + changed["gained"])
    for image in found["images"]:
        assert (image["before"] == image["class"]) != (image["after"] == image["class"])
    for row in found["confusions"]:
        pairs = list(zip(targets, before, after, strict=True))
        one, other = CLASSES.index(row["class"]), CLASSES.index(row["other"])
        assert row["before"] == sum(target == one and answer == other for target, answer, _ in pairs)
        assert row["after"] == sum(target == one and answer == other for target, _, answer in pairs)
        assert row["after"] > row["before"]


def test_images_are_small_of_the_right_shape() -> None:
    for channels, mode in ((1, "L"), (3, "RGB")):
        found = compare_answers(
            split([0, 1], channels), CLASSES[:2], torch.tensor([1, 1]), torch.tensor([0, 0])
        )
        for entry in found["images"]:
            image = Image.open(io.BytesIO(base64.b64decode(entry["jpeg"])))
            assert image.size == (96, 48)
            assert image.mode == mode
