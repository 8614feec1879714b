"""A disk that is really full, or really read-only, in the middle of a run."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from secateur import build
from secateur.checkpoint import load
from secateur.errors import SecateurError, StoppedError
from secateur.jobs.prune import prune
from secateur.jobs.settings import TrainJob
from secateur.jobs.train import train
from secateur.recipes import Callback
from secateur.training.events import EpochDone
from secateur.training.run_folder import read_metrics, read_summary
from tests.jobs.test_resume import StopAt, outcome, pruning
from tests.jobs.test_train import job as training

MEGABYTES = 40


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    done = (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "secateur-test", str(place)],
            capture_output=True,
            check=False,
        )
        if shutil.which("mount")
        else None
    )
    if done is None or done.returncode:
        pytest.skip("mounting a small disk needs the rights of the administrator")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path) -> None:
    """Leaves no byte free."""
    with (disk / "ballast").open("wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2


class Fills(Callback):
    """A callback that fills the disk after so many epochs."""

    def __init__(self, disk: Path, epoch: int) -> None:
        self._disk, self._left = disk, epoch

    def on_epoch_end(self, epoch: EpochDone) -> None:
        self._left -= 1
        if self._left == 0:
            fill(self._disk)


RECIPE = "all that recovers"
DIGITS = {"source": "secateur:digits"}


def check_kept(out: Path, model: nn.Module | None = None) -> None:
    """Every file of an unfinished run is whole; code of a user builds the model."""
    load(out / "checkpoints" / "last.safetensors", model)
    assert read_summary(out)["status"] in ("running", "failed", "interrupted")
    assert read_metrics(out)


def test_a_run_whose_disk_fills_up_keeps_its_last_good_state_and_goes_on(
    small_trained: dict[str, str], disk: Path, tmp_path: Path
) -> None:
    prune(pruning(tmp_path / "whole", small_trained, RECIPE))
    out = disk / "run"
    with pytest.raises(SecateurError, match=r"No space left on device.*--resume continues") as caught:
        prune(pruning(out, small_trained, RECIPE), [Fills(disk, epoch=2)])
    assert "\n" not in str(caught.value)
    check_kept(out, build(small_trained["builder"]))
    (disk / "ballast").unlink()
    prune(pruning(out, small_trained, RECIPE, resume=True))
    assert outcome(out) == outcome(tmp_path / "whole")
    assert not list(out.rglob("*.part"))


def test_a_read_only_disk_is_told_in_one_line_and_nothing_is_lost(disk: Path, tmp_path: Path) -> None:
    def job(place: Path, resume: bool = False) -> TrainJob:
        return training(place / "run", DIGITS, fit={"epochs": 3}, resume=resume)

    train(job(tmp_path))
    with pytest.raises(StoppedError):
        train(job(disk), [StopAt(30)])
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for refused in (job(disk, resume=True), training(disk / "new", DIGITS)):
        with pytest.raises(SecateurError, match="Read-only file system; choose another with --out") as caught:
            train(refused)
        assert "\n" not in str(caught.value)
    check_kept(disk / "run")
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    train(job(disk, resume=True))
    assert outcome(disk / "run") == outcome(tmp_path / "run")


def test_a_disk_that_is_full_from_the_start(disk: Path) -> None:
    fill(disk)
    with pytest.raises((SecateurError, OSError)) as caught:
        train(training(disk / "run", DIGITS))
    assert "No space left on device" in str(caught.value)
