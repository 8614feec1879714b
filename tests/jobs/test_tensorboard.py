from __future__ import annotations

import sys
from pathlib import Path

import pytest

from secateur.errors import UsageError
from secateur.jobs.prune import prune
from secateur.jobs.tensorboard import TensorBoard
from secateur.training.run_folder import read_metrics
from tests.jobs.test_prune import job

pytest.importorskip("tensorboard")


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves that TensorBoard itself finds."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(at.step, at.value) for at in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_curves_are_those_of_the_log(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    board = TensorBoard(run)
    prune(job(run, trained), [board])
    board.close()
    log = read_metrics(run)
    epochs = [line for line in log if line["event"] == "epoch"]
    found = read(run / "tensorboard")
    for curve, key in (("training/loss", "loss"), ("validation/accuracy", "metric")):
        points = [(number, line[key]) for number, line in enumerate(epochs, start=1)]
        expected = [(number, value) for number, value in points if value is not None]
        assert found[curve] == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected]
    cuts = [number for number, line in enumerate(log) if line["event"] == "cut"]
    assert [value for _, value in found["network/macs"]] == [log[cut]["cost"]["macs"] for cut in cuts]
    # Networks before training count as epochs.
    epochs_before = [sum(line["event"] == "epoch" for line in log[:cut]) for cut in cuts]
    assert [step for step, _ in found["network/macs"]] == epochs_before
    # a run that is written over takes its curves along
    prune(job(run, trained, overwrite=True))
    assert not (run / "tensorboard").exists()


def test_what_is_missing_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UsageError, match=r"secateur\[tensorboard\]"):
        TensorBoard(tmp_path)
