from __future__ import annotations

from pathlib import Path

import pytest

from secateur.training.files import replacing, write_text


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "summary.json"
    write_text(target, "old")

    def fail() -> None:
        with replacing(target) as part:
            part.write_text("ne")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert target.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    target = tmp_path / "metrics.jsonl"
    write_text(target, "old")
    with replacing(target) as part:
        part.write_text("half of the ne")
        assert target.read_text() == "old"
        part.write_text("new")
    assert target.read_text() == "new"


def test_files_get_the_permissions_of_ordinary_files(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.write_text("x")
    write_text(tmp_path / "atomic", "x")
    assert (tmp_path / "atomic").stat().st_mode == ordinary.stat().st_mode
