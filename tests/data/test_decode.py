from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from secateur.data.decode import Decoder, is_image
from secateur.errors import DataError, UsageError

RED = (200, 30, 40)


def decode(path, channels=3, side=4):
    return Decoder(channels, side)(path)


def close_to(pixels, color, tolerance=6):
    expected = torch.tensor(color, dtype=torch.int).view(-1, 1, 1).expand(pixels.shape)
    return pixels.dtype == torch.uint8 and bool(((pixels.int() - expected).abs() <= tolerance).all())


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp", "a.gif", "a.webp", "a.tif", "a.ppm"])
def test_formats(tmp_path, name):
    Image.new("RGB", (8, 8), RED).save(tmp_path / name, quality=100)
    assert close_to(decode(tmp_path / name), RED)


def test_a_wrong_extension_does_not_matter(tmp_path):
    Image.new("RGB", (8, 8), RED).save(tmp_path / "a.jpg", format="PNG")
    assert close_to(decode(tmp_path / "a.jpg"), RED, tolerance=0)


def test_cmyk(tmp_path):
    Image.new("CMYK", (8, 8), (255, 0, 255, 0)).save(tmp_path / "a.jpg", quality=100)  # cyan + yellow
    assert close_to(decode(tmp_path / "a.jpg"), (0, 255, 0))


def test_grey_in_colour_and_colour_in_grey(tmp_path):
    Image.new("L", (8, 8), 77).save(tmp_path / "grey.png")
    assert close_to(decode(tmp_path / "grey.png"), (77, 77, 77), tolerance=0)
    Image.new("RGB", (8, 8), RED).save(tmp_path / "red.png")
    # ITU-R 601-2 luma.
    luma = round(0.299 * RED[0] + 0.587 * RED[1] + 0.114 * RED[2])
    assert close_to(decode(tmp_path / "red.png", channels=1), (luma,), tolerance=1)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path, name):
    Image.fromarray(np.full((8, 8), 25700, dtype=np.uint16)).save(tmp_path / name)
    assert close_to(decode(tmp_path / name), (100, 100, 100), tolerance=0)


@pytest.mark.parametrize(("value", "expected"), [(0.5, 128), (51.0, 51)])
def test_floating_point_grey(tmp_path, value, expected):
    Image.fromarray(np.full((8, 8), value, dtype=np.float32)).save(tmp_path / "a.tif")
    assert close_to(decode(tmp_path / "a.tif"), (expected,) * 3, tolerance=0)


def test_transparency_is_on_white(tmp_path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "rgba.png")
    assert close_to(decode(tmp_path / "rgba.png"), (255, 255, 255), tolerance=0)
    Image.new("RGBA", (8, 8), (*RED, 255)).save(tmp_path / "solid.png")
    assert close_to(decode(tmp_path / "solid.png"), RED, tolerance=0)
    Image.new("LA", (8, 8), (0, 128)).save(tmp_path / "la.png")
    assert close_to(decode(tmp_path / "la.png"), (127, 127, 127), tolerance=1)


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, *RED, 9, 9, 9])
    image.save(tmp_path / "plain.png")
    assert close_to(decode(tmp_path / "plain.png"), RED, tolerance=0)
    image.save(tmp_path / "clear.png", transparency=bytes([255, 0, 255]))
    assert close_to(decode(tmp_path / "clear.png"), (255, 255, 255), tolerance=0)
    image.save(tmp_path / "clear.gif", transparency=1)
    assert close_to(decode(tmp_path / "clear.gif"), (255, 255, 255), tolerance=0)


def test_exif_rotation(tmp_path):
    upright = Image.new("RGB", (4, 8), "black")
    upright.paste("white", (0, 0, 4, 4))  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show rotated by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.jpg", exif=exif, quality=100)
    pixels = decode(tmp_path / "a.jpg")
    assert pixels.shape == (3, 8, 4)
    assert pixels[:, :3].min() > 240
    assert pixels[:, 5:].max() < 15


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ((30, 20), (3, 8, 12)),
        ((20, 30), (3, 12, 8)),
        ((3, 2), (3, 8, 12)),
        ((100, 10), (3, 8, 16)),  # of a panorama the middle
        ((10, 100), (3, 16, 8)),
        ((1, 1), (3, 8, 8)),
    ],
)
def test_the_shorter_side_is_scaled(tmp_path, size, shape):
    Image.new("RGB", size, RED).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", side=8).shape == shape


def test_large_jpegs_keep_their_detail(tmp_path):
    # Half black, half white: decoding at a fraction of the size must not move the edge.
    pixels = np.zeros((800, 800, 3), dtype=np.uint8)
    pixels[:, 400:] = 255
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    small = decode(tmp_path / "a.jpg", side=100)
    assert small.shape == (3, 100, 100)
    assert small[:, :, :48].max() < 10
    assert small[:, :, 52:].min() > 245


def write(name, data):
    def action(folder):
        (folder / name).write_bytes(data)
        return folder / name

    return action


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (write("a.jpg", b""), "the file is empty"),
        (write("a.jpg", b"GIF? no"), "it is not an image"),
        (write("a.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 40), r"a\.png: "),
        (lambda folder: folder / "absent.jpg", "No such file"),
        (lambda folder: folder, r": "),
    ],
)
def test_unreadable_files_are_named_with_a_reason(tmp_path, make, reason):
    path = make(tmp_path)
    with pytest.raises(DataError, match=reason) as caught:
        decode(path)
    assert str(caught.value).startswith(str(path))


def test_a_image_that_ends_too_early(tmp_path):
    path = tmp_path / "a.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match="truncated|Truncated"):
        decode(path)


def test_decompression_bombs_are_refused(tmp_path, monkeypatch):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="exceeds limit"):
        decode(tmp_path / "a.png")


def test_networks_for_other_channels():
    with pytest.raises(UsageError, match="the network takes 4"):
        Decoder(4, 8)


def test_what_passes_for_a_image(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "without", format="PNG")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "broken.jpg").write_text("no image either, but it claims to be")
    assert is_image(tmp_path / "without")
    assert not is_image(tmp_path / "notes.txt")
    assert is_image(tmp_path / "broken.jpg")
    assert not is_image(Path(tmp_path / "absent"))


@settings(max_examples=60)
@given(data=st.data(), name=st.sampled_from(["a.jpg", "a.png", "a.gif", "a.bmp", "a.webp"]))
@pytest.mark.filterwarnings("ignore")  # Pillow warns of oddities in damaged files
def test_damaged_images_decode_or_give_one_clear_line(tmp_path_factory, data, name):
    path = tmp_path_factory.mktemp("damaged") / name
    Image.radial_gradient("L").resize((16, 16)).convert("RGB").save(path)
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged[: data.draw(st.integers(1, len(damaged)))])
    try:
        assert min(decode(path).shape) >= 3
    except DataError as error:
        assert "\n" not in str(error)
