from __future__ import annotations

from pathlib import Path

import pytest

from secateur.errors import UsageError
from secateur.latency.operator_timer import CACHE, Timings


def test_a_file_remembers(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "timings.jsonl"
    timings = Timings(file)
    timings.put("here", "an operator", 1.5)
    timings.put("here", "an operator", 2.5)
    again = Timings(file)
    assert again.get("here", "an operator") == 2.5
    assert again.get("there", "an operator") is None
    assert len(again) == 1


DAMAGED = [
    '{"conditions": "here", "wh',
    "[]",
    "{}",
    '{"conditions": "a", "what": "b", "ms": "x"}',
    '{"conditions": "a", "what": "b", "ms": NaN}',
    "\x00\xff",
]


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_lines_are_measured_again(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "timings.jsonl"
    Timings(file).put("here", "one", 1.0)
    with file.open("a") as stream:
        stream.write(damage)  # without an end of line, as a kill leaves it
    timings = Timings(file)
    assert len(timings) == 1
    timings.put("here", "two", 2.0)
    again = Timings(file)
    assert (again.get("here", "one"), again.get("here", "two")) == (1.0, 2.0)


def test_two_processes_may_write_at_once(tmp_path: Path) -> None:
    file = tmp_path / "timings.jsonl"
    one, other = Timings(file), Timings(file)
    one.put("here", "one", 1.0)
    other.put("here", "two", 2.0)
    assert len(Timings(file)) == 2


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UsageError, match=f"timings cannot be kept .* set {CACHE}"):
        Timings(blocked / "timings.jsonl")


def test_where_timings_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "mine"))
    assert Timings.at_home().path == tmp_path / "mine" / "timings.jsonl"
    monkeypatch.delenv(CACHE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Timings.at_home().path == tmp_path / "secateur" / "timings.jsonl"
