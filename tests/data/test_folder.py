from __future__ import annotations

import os
import shutil
from collections import Counter

import pytest
import torch
from PIL import Image

from secateur.data import DataSettings, open_data, open_folder
from secateur.errors import DataError
from secateur.models import InputSpec

SPEC = InputSpec((3, 8, 8), (0.0,) * 3, (1.0,) * 3)
COLORS = {"cats": (250, 0, 0), "dogs": (0, 0, 250)}


@pytest.fixture
def folder(tmp_path):
    """Four red cats and four blue dogs in ``train`` and ``test`` each."""
    for split in ("train", "test"):
        fill(tmp_path / split, 4)
    return tmp_path


def fill(split, count):
    for name, color in COLORS.items():
        (split / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (9, 10), (*color[:1], index, color[2])).save(split / name / f"{index}.png")


def indices(split):
    """Which images a split holds: the class, and the number in the green channel."""
    return [
        (target, image[1, 0, 0].item())
        for image, target in zip(split.images, split.targets.tolist(), strict=True)
    ]


def test_images_and_classes(folder):
    data = open_folder(folder, SPEC)
    assert data.classes == ("cats", "dogs")
    assert data.test.counts(2) == (4, 4)
    assert data.skipped == ()
    for inputs, targets in data.test_batches():
        assert inputs.shape[1:] == (3, 8, 8)
        assert torch.equal(inputs[:, 2, 0, 0] > 0.5, targets == 1)


def test_without_val_a_part_of_train_is_held_out(folder):
    data = open_folder(folder, SPEC, DataSettings(held_out=0.25))
    assert data.train.counts(2) == (3, 3)
    assert data.validation.counts(2) == (1, 1)
    everything = [(target, number) for target in (0, 1) for number in range(4)]
    assert sorted(indices(data.train) + indices(data.validation)) == everything
    assert sorted(indices(data.test)) == everything


def test_with_nothing_held_out_all_images_are_trained_on(folder):
    whole, part = (open_folder(folder, SPEC, DataSettings(held_out=share)) for share in (0, 0.25))
    assert len(whole.train) == len(part.train) + len(part.validation)
    assert len(whole.validation) == 0
    assert whole.validation_batches() is None
    assert len(whole.test) == len(part.test) > 0


def test_what_is_held_out_is_a_random_share_whatever_the_seed(tmp_path):
    fill(tmp_path / "train", 40)
    fill(tmp_path / "test", 2)
    held = [
        indices(open_folder(tmp_path, SPEC, DataSettings(held_out=0.2, seed=seed)).validation)
        for seed in (0, 0, 1)
    ]
    assert held[0] == held[1] == held[2]
    assert Counter(target for target, _ in held[0]) == {0: 8, 1: 8}
    assert {number for _, number in held[0]} - set(range(8))  # not the first of each class


def test_with_val_nothing_is_held_out(folder):
    fill(folder / "val", 1)
    data = open_folder(folder, SPEC)
    assert (len(data.train), len(data.validation), len(data.test)) == (8, 2, 8)


def test_without_test_val_is_reported_on(folder):
    (folder / "test").rename(folder / "val")
    data = open_folder(folder, SPEC)
    assert (len(data.train), len(data.validation)) == (8, 8)
    assert data.test is data.validation


def test_judging_needs_no_train(folder):
    shutil.rmtree(folder / "train")
    data = open_folder(folder, SPEC, training=False)
    assert len(data.test) == 8


def test_nested_folders_links_and_other_files(folder):
    extra = folder / "train" / "cats" / "more"
    extra.mkdir()
    Image.new("RGB", (8, 8), (250, 9, 0)).save(extra / "x.png")
    (folder / "train" / "cats" / "notes.txt").write_text("about cats")
    (folder / "train" / "cats" / ".DS_Store").write_bytes(b"\0")
    (folder / "train" / ".cache").mkdir()
    (folder / "train" / "dogs" / "linked").symlink_to(folder / "test" / "dogs", target_is_directory=True)
    data = open_folder(folder, SPEC, DataSettings(held_out=0.01))
    assert data.train.counts(2) == (4, 7)
    assert data.skipped == ()


def test_what_memory_cannot_hold_is_read_from_disk(folder):
    kept, read = (open_folder(folder, SPEC, DataSettings(memory=memory)) for memory in (1 << 20, 0))
    for _ in range(2):
        for (a, s), (b, t) in zip(kept.training_batches(), read.training_batches(), strict=True):
            assert torch.equal(a, b)
            assert torch.equal(s, t)
    [part] = read.test_batches().split(1, 2)
    assert part.batch[1].tolist() == [0, 0, 1, 1]
    assert (part.examples, part.total) == (4, 8)


def test_names_in_any_writing_and_links(folder):
    """Names beyond ASCII, names that are no text at all, links to files, to nothing, and in a circle."""
    (folder / "train" / "cats").rename(folder / "train" / "Kätzchen 猫")
    (folder / "test" / "cats").rename(folder / "test" / "Kätzchen 猫")
    cats = folder / "train" / "Kätzchen 猫"
    (cats / "0.png").rename(cats / "größe 🐈.png")
    (cats / "1.png").rename(os.fsdecode(os.fsencode(cats) + b"/\xff\xfe.png"))
    (cats / "link.png").symlink_to(folder / "test" / "Kätzchen 猫" / "0.png")
    (cats / "broken.png").symlink_to(folder / "nowhere.png")
    (cats / "round").symlink_to(folder / "train" / "Kätzchen 猫", target_is_directory=True)
    data = open_folder(folder, SPEC, DataSettings(held_out=0.01))
    assert data.classes == ("Kätzchen 猫", "dogs")
    assert len(data.train) + len(data.validation) == 4 + 1 + 4
    assert [line for line in data.skipped if "broken.png" not in line] == []


def test_a_file_that_vanishes_in_the_middle(folder):
    data = open_folder(folder, SPEC, DataSettings(memory=0, batch_size=2))
    batches = iter(data.test_batches())
    next(batches)
    for path in (folder / "test" / "dogs").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"dogs.*\.png") as caught:
        list(batches)
    assert "\n" not in str(caught.value)


# Bad input.


def read_all(folder, settings):
    data = open_folder(folder, SPEC, settings)
    return data.train, data.validation, data.test


def error(folder, **settings):
    with pytest.raises(DataError) as caught:
        read_all(folder, DataSettings(**settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_folder(tmp_path):
    assert "no folder" in error(tmp_path / "absent")
    (tmp_path / "file").touch()
    assert "no folder" in error(tmp_path / "file")


def test_no_train_folder(folder):
    shutil.rmtree(folder / "train")
    assert f"no train/ folder in {folder}" in error(folder)


def test_nothing_to_report_on(folder):
    shutil.rmtree(folder / "test")
    assert "neither val/ nor test/" in error(folder)


@pytest.mark.parametrize(
    ("names", "message"), [((), "but has none"), (("cats",), "but has only cats"), ((".git", "a"), "only a")]
)
def test_too_few_classes(tmp_path, names, message):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for name in names:
            (tmp_path / split / name).mkdir()
            Image.new("RGB", (8, 8)).save(tmp_path / split / name / "a.png")
    assert message in error(tmp_path)


def test_an_empty_class(folder):
    (folder / "train" / "birds").mkdir()
    assert "class 'birds' is empty: no file in" in error(folder)
    (folder / "train" / "birds" / "list.csv").write_text("a,b")
    assert "class 'birds' is empty: none of the 1 files in" in error(folder)


def test_classes_that_differ(folder):
    (folder / "test" / "cats").rename(folder / "test" / "kittens")
    assert f"{folder / 'test'} lacks classes that train/ has: cats" in error(folder)
    (folder / "test" / "kittens").rename(folder / "test" / "cats")
    shutil.copytree(folder / "test" / "cats", folder / "test" / "birds")
    assert f"{folder / 'train'} lacks classes that test/ has: birds" in error(folder)


def test_one_image_cannot_be_held_out(tmp_path):
    fill(tmp_path / "train", 1)
    fill(tmp_path / "test", 1)
    assert "has one image, so none can be held out" in error(tmp_path)


@pytest.mark.parametrize("memory", [1 << 20, 0])
def test_unreadable_images_are_skipped_named_and_counted(folder, memory):
    (folder / "test" / "cats" / "0.png").write_bytes(b"")
    (folder / "test" / "dogs" / "x.jpg").write_text("woof")
    data = open_folder(folder, SPEC, DataSettings(memory=memory))
    assert data.test.counts(2) == (3, 4)
    assert sorted(indices(data.test)) == [(0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)]
    assert data.skipped == (
        f"{folder / 'test' / 'cats' / '0.png'}: the file is empty",
        f"{folder / 'test' / 'dogs' / 'x.jpg'}: it is not an image",
    )


@pytest.mark.parametrize("memory", [1 << 20, 0])
def test_strict_refuses_unreadable_images(folder, memory):
    for index in range(7):
        (folder / "test" / "cats" / f"bad{index}.png").write_bytes(b"bad")
    message = error(folder, strict=True, memory=memory)
    assert message.startswith("7 unreadable: ")
    assert "bad0.png: it is not an image" in message
    assert message.endswith("and 3 more")


def test_a_class_without_a_readable_image(folder):
    for path in (folder / "test" / "cats").iterdir():
        path.write_bytes(b"")
    assert "no image of class 'cats' in test can be read" in error(folder)


def test_damage_that_shows_only_on_reading(folder):
    path = folder / "test" / "cats" / "0.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    batches = open_folder(folder, SPEC, DataSettings(memory=0)).test_batches()
    with pytest.raises(DataError, match=r"0\.png"):
        list(batches)


def test_a_folder_called_digits(folder, monkeypatch):
    assert len(open_data("digits", InputSpec((1, 8, 8), (0.5,), (0.5,))).classes) == 10
    monkeypatch.chdir(folder.parent)
    folder.rename(folder.parent / "digits")
    assert open_data("digits", SPEC).classes == ("cats", "dogs")
