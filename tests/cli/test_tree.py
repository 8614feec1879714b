from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from secateur.cli.structure import structure
from secateur.cli.tree import Columns, ModuleTree
from secateur.jobs.inspect import inspect
from secateur.jobs.settings import NetworkChoice


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return inspect(NetworkChoice(source="secateur:resnet20", weights="none"))


def drawn(found: dict[str, Any], width: int, *, terminal: bool = False, whole: bool = False) -> str:
    out = io.StringIO()
    console = Console(
        file=out, width=width, force_terminal=terminal, color_system="standard" if terminal else None
    )
    console.print(structure(found, whole=whole))
    return out.getvalue()


def test_every_layer_has_its_widths_its_costs_and_its_group(found: dict[str, Any]) -> None:
    lines = drawn(found, 120, whole=True).splitlines()
    convolutions = [line for line in lines if " Conv2d " in line]
    assert len(convolutions) == 19
    assert len([line for line in lines if "BatchNorm2d" in line]) == 19
    assert "smaller one" not in "".join(lines)
    (first,) = (line for line in lines if " layer2 " in line and "→" not in line)
    inside = [layer for layer in found["layers"] if layer["name"].startswith("layer2.")]
    assert f"{sum(layer['macs'] for layer in inside) / 1e6:.1f} M" in first
    (last,) = (line for line in lines if " Linear " in line)
    assert "64 → 10" in last
    assert "frozen: is an output" in last
    # the residual stream of the first stage is one group, written by every second convolution there
    stage = lines[: lines.index(first)]
    assert sum("●1" in line and "Conv2d" in line for line in stage) == 4


def test_what_is_left_out_is_counted(found: dict[str, Any]) -> None:
    lines = drawn(found, 120).splitlines()
    tree = lines[: next(number for number, line in enumerate(lines) if line.startswith("channel groups"))]
    kinds = {layer["kind"] for layer in found["layers"]}
    shown = [line for line in tree if kinds & set(line.split())]
    left_out = [
        int(number) for line in tree for number in re.findall(r"(\d+) (?:smaller ones|layers) ", line)
    ]
    assert len(shown) >= 20
    assert min(left_out) >= 2  # a line for one layer would be no shorter than the layer itself
    assert len(shown) + sum(left_out) == len(found["layers"])


def test_a_module_of_many_small_layers_is_shown_folded() -> None:
    small = [
        {"name": f"body.{n}", "kind": "Conv2d", "params": 2, "macs": 2, "in": 1, "out": 1} for n in range(99)
    ]
    large = [
        {"name": f"head.{n}", "kind": "Linear", "params": 9, "macs": 9, "in": 3, "out": 3} for n in range(20)
    ]
    found = {"model": "net", "layers": small + large, "groups": [], "cost": {"params": 378, "macs": 378}}
    out = io.StringIO()
    console = Console(file=out, width=100, color_system=None)
    console.print(ModuleTree(found).draw(Columns(100)))
    (body,) = (line for line in out.getvalue().splitlines() if "body" in line)
    assert "99 layers" in body
    assert "198" in body
    assert "smaller" not in out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_wider_than_the_terminal(found: dict[str, Any], width: int) -> None:
    text = drawn(found, width)
    assert max(map(len, text.splitlines())) <= width
    assert "layer3" in text
    assert "is an output" in " ".join(text.split())


def test_colours_are_for_terminals(found: dict[str, Any]) -> None:
    assert "\x1b" not in drawn(found, 100)
    assert "\x1b[32m●1" in drawn(found, 100, terminal=True)


def test_the_old_keys_are_there_as_they_were(found: dict[str, Any]) -> None:
    assert list(found)[:5] == ["model", "input", "cost", "groups", "layers"]
    assert {"name", "kind", "params", "macs"} <= found["layers"][0].keys()
    assert {"name", "channels", "frozen", "written_by", "read_by", "params", "macs"} <= found["groups"][
        0
    ].keys()
    first = next(layer for layer in found["layers"] if layer["name"] == "layer2.0.conv1")
    assert (first["in"], first["out"]) == (16, 32)
