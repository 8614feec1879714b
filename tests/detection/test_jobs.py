"""Jobs on detectors: what they have of other networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur as sec
from secateur.detection import save_detector
from secateur.errors import StoppedError, UsageError
from secateur.jobs.frontier import frontier
from secateur.jobs.prune import prune
from secateur.jobs.settings import FrontierJob, PruneJob
from secateur.recipes import Callback, Recipe
from secateur.training.events import EpochDone
from secateur.training.run_folder import read_metrics, read_summary
from tests.detection.generated import SIDE, detector, draw
from tests.detection.torchvision_detectors import small_detector
from tests.libraries import QUIET

pytestmark = QUIET

FEW_LAYERS = "yolov3-tiny"
Job = Callable[..., dict[str, Any]]


@pytest.fixture(params=["torchvision", "ultralytics"])
def job(request: pytest.FixtureRequest, tmp_path: Path) -> Job:
    """Return the settings of a job on a small detector in ``tmp_path``, apart from what is pruned to."""
    settings = {"image_size": SIDE, "batch": 4, "calibration_images": 8}
    if request.param == "ultralytics":
        pytest.importorskip("ultralytics")
        file = save_detector(tmp_path / "net.pt", detector(FEW_LAYERS))
        network = {"source": str(file), "trusted": True}
        settings["options"] = {"workers": 0}
    else:
        torch.save(small_detector("SSD").state_dict(), tmp_path / "ssd.pth")
        (tmp_path / "net.py").write_text(
            "from tests.detection.torchvision_detectors import small_detector\n"
            "def ssd(num_classes=3):\n"
            "    return small_detector('SSD', num_classes - 1)\n"
        )
        network = {"source": f"{tmp_path / 'net.py'}:ssd", "weights": str(tmp_path / "ssd.pth")}
    data = draw(tmp_path / "data")
    common = {"network": network, "data": {"source": str(data)}, "detector": settings, "latency_seconds": 0}

    def made(out: str, **more: Any) -> dict[str, Any]:
        return {**common, "out": tmp_path / out, **more}

    return made


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Read the best network of a run on a detector of torchvision."""
    return sec.load(run / "checkpoints" / "best.safetensors", model=small_detector("SSD")).state_dict()


class Watches(Callback):
    """Note what is measured and resumed, and stop a run after an epoch, as Ctrl-C does."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop, self.measured, self.resumed = stop, 0, 0

    def on_scores(self, scores: object) -> None:
        self.measured += 1

    def on_resume(self, cuts: Sequence[object]) -> None:
        self.resumed = len(cuts)

    def on_epoch_end(self, epoch: EpochDone) -> None:
        if epoch.epoch == self.stop:
            raise StoppedError(2)


def test_a_run_that_was_stopped_continues(job: Job, tmp_path: Path) -> None:
    settings = job("run", budget={"macs": 0.6})
    own_loop = ".py:" in settings["network"]["source"]  # ultralytics begins its training again
    epochs, recipe = (2, {"finetune": {"epochs": 2}}) if own_loop else (1, {"finetune": {"epochs": 1}})
    settings["recipe"] = Recipe(**recipe, allocation="global")
    with pytest.raises(StoppedError, match="--resume continues"):
        prune(PruneJob(**settings), [Watches(stop=epochs - 1)])
    watches = Watches()
    summary = prune(PruneJob(**settings, resume=True), [watches])
    assert (watches.measured, watches.resumed) == (0, 1)
    records = read_metrics(tmp_path / "run")
    assert [line["event"] for line in records if line["event"] != "note"] == [
        "cut",
        *["epoch"] * (epochs + 1),
    ]
    assert summary["training"]["epochs"] == epochs
    if own_loop:
        prune(PruneJob(**{**settings, "out": tmp_path / "whole"}))
        one, other = (weights(tmp_path / name) for name in ("run", "whole"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_frontier_and_its_measurements_serve_a_run(job: Job, tmp_path: Path) -> None:
    settings = job("frontier", points=1)
    own_loop = ".py:" in settings["network"]["source"]  # width curves of the other take longer
    recipe = Recipe(finetune={"epochs": 0}, allocation="curves" if own_loop else "global")
    found = frontier(FrontierJob(**settings, recipe=recipe))
    point = found["frontier"]["points"][0]
    assert found["evaluated_on"] == "validation"
    assert point["verified"]
    run = job("run", budget={"macs": point["share"]}, recipe=recipe, measured=tmp_path / "frontier")
    watches = Watches()
    summary = prune(PruneJob(**run), [watches])
    assert watches.measured == 0
    assert summary["pruned"]["macs"] == point["cost"]["macs"]
    assert summary["pruned"]["map"] == pytest.approx(point["map"])


def test_a_search_for_the_smallest_detector(job: Job, tmp_path: Path) -> None:
    once = Recipe(finetune={"epochs": 0}, allocation="global")
    summary = prune(PruneJob(**job("run", search={"max_drop": 99, "tries": 1}, recipe=once)))
    start, tried = summary["path"]
    assert start["validation_map"] == pytest.approx(summary["baseline"]["map"])
    assert tried["held"]
    assert tried["validation_map"] == pytest.approx(summary["pruned"]["map"])
    assert summary["pruned"]["macs"] < summary["baseline"]["macs"]


def test_the_run_holds_what_other_runs_hold(job: Job, tmp_path: Path) -> None:
    summary = prune(PruneJob(**job("run", budget={"macs": 0.6}, recipe=Recipe(finetune={"epochs": 1}))))
    written = read_summary(tmp_path / "run")
    assert (written["status"], written["skipped"], written["verification"]["ok"]) == ("done", [], True)
    assert {split: summary["start"]["images"][split] for split in ("train", "val")} == {"train": 8, "val": 8}
    assert summary["start"]["tested_on"] == "validation"
    assert list(summary["classes"]) == ["red", "blue"]
    training = summary["training"]
    assert training["kept"]["map"] == pytest.approx(summary["pruned"]["map"])
    assert training["kept"]["map"] >= training["start"]["map"]
    epochs = [line for line in read_metrics(tmp_path / "run") if line["event"] == "epoch"]
    assert [line["epoch"] for line in epochs] == [0, 1]
    assert {line["metric_name"] for line in epochs} == {"mAP50-95"}


@pytest.mark.parametrize("path", ["data.held_out", "distillation.weight"])
def test_settings_that_were_given_and_have_no_effect_are_refused(path: str, job: Job, tmp_path: Path) -> None:
    settings = job("run", budget={"macs": 0.6}, given=(path,))  # the value is the default
    with pytest.raises(UsageError, match=f"{path}: no effect on detectors"):
        prune(PruneJob(**settings))
    assert not (tmp_path / "run").exists()


def test_several_processes_are_refused(job: Job) -> None:
    with pytest.raises(UsageError, match="work on a detector is not shared"):
        PruneJob(**job("run", budget={"macs": 0.6}, device={"devices": 2}))
