from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from PIL import Image

from secateur.errors import UsageError
from secateur.report import write_figures
from tests.report.conftest import Change

NAMES = ("course", "widths", "coupling", "layers", "scores", "verification")


def test_every_figure_is_there_twice_and_names_what_it_shows(changed: Change, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    copy = changed("network.json", lambda text: text.replace('"inner"', '"$in<n>er$"'))
    files = write_figures(copy, tmp_path / "figures")
    assert sorted(file.name for file in files) == sorted(f"{n}.{e}" for n in NAMES for e in ("png", "svg"))
    for file in files:
        if file.suffix == ".png":
            with Image.open(file) as picture:
                assert picture.width > 1500
                assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 5
        else:
            words = "".join(ET.parse(file).getroot().itertext())
            if file.stem in ("widths", "coupling"):
                assert "$in<n>er$" in words
    again = write_figures(copy, tmp_path / "again")
    for one, other in zip(files, again, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_what_is_wrong_is_said_in_a_line(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        write_figures(run, tmp_path / "file")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"secateur\[figures\]"):
        write_figures(run, tmp_path / "figures")
    assert not (tmp_path / "figures").exists()
