from __future__ import annotations

import json
import time

import pytest

from secateur.cli.console import Reporter
from secateur.training.events import EpochDone, Progress

EPOCH = EpochDone("training", 2, 5, 0.25, 0.01, 61.0, metric=0.5)


def tell_everything(reporter: Reporter) -> None:
    with reporter:
        reporter.on_progress(Progress("training", 1, 2, loss=0.5))
        time.sleep(0.25)  # bars are drawn ten times a second
        reporter.on_note("a [bold] note of /a/path")
        reporter.on_epoch_end(EPOCH)
        reporter.on_progress(Progress("training", 2, 2))
        reporter.finish("done", {"top1": 0.5})
        reporter.tell("afterwards")


def test_without_a_terminal_there_are_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    tell_everything(Reporter())
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.splitlines() == [
        "a [bold] note of /a/path",
        "training  epoch 2/5  loss 0.250  top-1 50.00%  lr 0.01  1:01",
        "done",
        "afterwards",
    ]


def test_with_json_people_are_talked_to_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    tell_everything(Reporter(as_json=True))
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"top1": 0.5}
    assert captured.err.splitlines()[0] == "a [bold] note of /a/path"


def test_on_a_terminal_a_bar_shows_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "100")
    tell_everything(Reporter())
    shown = capsys.readouterr().out
    assert "1/2" in shown
    assert "left" in shown
    assert "loss 0.500" in shown
    assert "epoch 2/5" in shown


def test_without_a_terminal_a_long_phase_gets_one_line_with_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 3))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    with Reporter() as reporter:
        for done in range(1, 11):  # an event every three seconds
            reporter.on_progress(Progress("training", done, 10))
        for done in range(2):
            reporter.on_progress(Progress("short", done, 1))
        for done in range(4):
            reporter.on_progress(Progress("reading", done, None))
    assert capsys.readouterr().out.splitlines() == [
        "training: 3 of 10, about 21.0 s left",
        "reading: 2 done",
    ]
