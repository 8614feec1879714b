"""Files that somebody made to do harm, and files of older formats."""

from __future__ import annotations

import json
import random
import resource
import struct
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from secateur.checkpoint import load, save
from secateur.checkpoint.checksum import with_checksum, without_checksum
from secateur.errors import CheckpointError

FILES = Path(__file__).parent / "files"
MEGABYTE = 1 << 10  # in the units of ru_maxrss

Change = Any


class Old(nn.Module):
    """What the old files were cut from; its shapes stay as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def filled() -> Old:
    """The network with four of six channels left and values that anybody can compute again."""
    net = Old().eval()
    net.conv, net.norm, net.head = nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Linear(4, 3)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.linspace(0.25, 1.25, tensor.numel()).view(tensor.shape))
    return net.eval()


@pytest.mark.parametrize("file", sorted(FILES.glob("*.safetensors")), ids=lambda file: file.stem)
def test_files_of_every_format_are_read(file: Path) -> None:
    again = load(file, Old())
    expected = filled().state_dict()
    found = again.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert isinstance(again, Old)
    assert (again.conv.out_channels, again.head.in_features) == (4, 4)
    x = torch.linspace(-1, 1, 2 * 2 * 25).view(2, 2, 5, 5)
    assert torch.equal(again(x), filled()(x))


def test_there_is_a_file_of_the_present_format(tmp_path: Path) -> None:
    save(tmp_path / "now.safetensors", filled())
    now, kept = (
        json.loads(without_checksum(header_of(path)["__metadata__"]))["format"]
        for path in (tmp_path / "now.safetensors", max(FILES.glob("*.safetensors")))
    )
    assert now == kept


def header_of(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return dict(json.loads(content[8 : 8 + length]))


def with_header(content: bytes, header: bytes, length: int | None = None) -> bytes:
    (old,) = struct.unpack("<Q", content[:8])
    return struct.pack("<Q", len(header) if length is None else length) + header + content[8 + old :]


def bytes_changed(content: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
    return bytes(damaged)


def cut_short(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def wrong_length(content: bytes, chance: random.Random) -> bytes:
    return struct.pack("<Q", chance.choice([0, 1, 2**31, 2**63 - 1, 2**64 - 1, len(content)])) + content[8:]


def hostile_header(content: bytes, chance: random.Random) -> bytes:
    """Offsets, shapes and types of tensors that lie."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    name = chance.choice([key for key in header if key != "__metadata__"])
    lie: Change = chance.choice(
        [
            {"shape": [2**40, 2**40]},
            {"shape": [-1]},
            {"shape": [0] * 100},
            {"data_offsets": [0, 2**62]},
            {"data_offsets": [10, 5]},
            {"dtype": chance.choice(["F64", "BOOL", "F4", "", 3])},
        ]
    )
    header[name] |= lie
    return with_header(content, json.dumps(header).encode())


def hostile_description(content: bytes, chance: random.Random) -> bytes:
    """A description that lies under a checksum that is right."""
    path = hostile_description.folder / "forged.safetensors"  # type: ignore[attr-defined]
    path.write_bytes(content)
    tensors = load_file(path)
    data = json.loads(without_checksum(header_of(path)["__metadata__"]))
    deep: Change = 0
    for _ in range(chance.choice([3, 40, 900])):
        deep = [deep]
    evil: Change = chance.choice(
        [
            *(deep, "../../etc/passwd", "os:system", {"name": "os:system"}, {"name": "/tmp/x.py:run"}),
            *(2**70, -5, 1e308, None, True, [], {}, {"conv": {"out_channels": 2**40}}),
            *({"conv": {"__class__": 1}}, {"": {"training": 1}}, {"conv.weight": "conv.weight"}),
            "x" * chance.choice([10, 1 << 20]),
        ]
    )
    for key in chance.sample(sorted(data), chance.randint(1, 3)):
        data[key] = evil
    if chance.random() < 0.2:
        data[str(evil)[:50]] = evil
    save_file(tensors, path, metadata=with_checksum(json.dumps(data), tensors))
    return path.read_bytes()


HARM = (bytes_changed, cut_short, wrong_length, hostile_header, hostile_description)


def attack(folder: Path, count: int, seed: int) -> int:
    """Reads so many harmful files; how many of them were refused."""
    chance = random.Random(seed)
    hostile_description.folder = folder  # type: ignore[attr-defined]
    path = folder / "a.safetensors"
    save(path, filled(), metrics={"top1": 0.5})
    content, expected = path.read_bytes(), filled().state_dict()
    load(path, Old())  # whatever reading imports is there from now on
    modules, refused = set(sys.modules), 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        harm = HARM[number % len(HARM)](content, chance)
        path.write_bytes(harm)
        target = Old()
        began = time.perf_counter()
        try:
            load(path, target)
        except CheckpointError as error:
            refused += 1
            assert "\n" not in str(error)
            assert (target.conv.out_channels, target.head.weight.shape) == (6, (3, 6))
        else:
            found = target.state_dict()
            assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert time.perf_counter() - began < 1.0
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    # The largest of these files has a description of three megabytes.
    assert grown < 64 * MEGABYTE
    assert set(sys.modules) == modules
    return refused


def test_harmful_files_are_refused_in_one_line(tmp_path: Path) -> None:
    assert attack(tmp_path, 250, seed=0) > 200


@pytest.mark.slow
def test_ten_thousand_harmful_files(tmp_path: Path) -> None:
    assert attack(tmp_path, 10_000, seed=1) > 8_000
