"""How the trainer of ultralytics is set for the length of a training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from secateur.detection import DetectorSettings
from secateur.detection.library import ultralytics_in_use
from secateur.detection.tuning import DetectorTuner, image_size_of
from secateur.errors import StoppedError
from secateur.training.events import Progress
from tests.detection.generated import SIDE, detector, draw
from tests.libraries import QUIET
from tests.recorder import Recorder

pytestmark = QUIET


@pytest.mark.parametrize(
    ("batches", "epochs", "options", "accumulated", "warmup"),
    [
        (13, 12, {}, 1, 1.2),
        (500, 4, {}, 2, 0.4),
        (500, 100, {}, 4, 3.0),
        (13, 12, {"nbs": 64}, 4, 1.2),
        (13, 12, {"warmup_epochs": 2}, 1, 3.0),
    ],
)
def test_a_short_training_takes_more_steps_and_a_shorter_warm_up(
    batches: int, epochs: int, options: dict[str, Any], accumulated: int, warmup: float
) -> None:
    pytest.importorskip("ultralytics")
    from secateur.detection.trainers import fit_to_length

    trainer = SimpleNamespace(
        epochs=epochs,
        train_loader=range(batches),
        accumulate=4,
        batch_size=16,
        args=SimpleNamespace(nbs=64, warmup_epochs=3.0),
    )
    fit_to_length(trainer, options)
    assert (trainer.accumulate, trainer.args.nbs) == (accumulated, 16 * accumulated)
    assert trainer.args.warmup_epochs == pytest.approx(warmup)


def test_every_batch_of_a_short_training_is_a_step(tmp_path: Path) -> None:
    pytest.importorskip("ultralytics")
    from secateur.detection.trainers import PrunedDetectionTrainer

    steps = []
    original = PrunedDetectionTrainer.optimizer_step

    def counted(self: Any) -> None:
        steps.append(self.args.warmup_epochs)
        original(self)

    data, network = draw(tmp_path / "data"), detector()
    network.task = "detect"
    settings = DetectorSettings(image_size=SIDE, batch=4)
    with ultralytics_in_use(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(PrunedDetectionTrainer, "optimizer_step", counted)
        tuner = DetectorTuner(data, tmp_path / "out", settings)
        trainer = tuner.trainer(network, 2, "data")
        batches = len(trainer.get_dataloader(trainer.data["train"], batch_size=4, rank=-1, mode="train"))
        tuner.train(network, 2)
    assert steps == [pytest.approx(0.2)] * (2 * batches)


def test_the_size_of_a_detector_is_that_of_its_training() -> None:
    network = detector()
    assert image_size_of(network, DetectorSettings()) == 640
    network.args = {"imgsz": 160}
    assert image_size_of(network, DetectorSettings()) == 160
    assert image_size_of(network, DetectorSettings(image_size=96)) == 96


def test_a_callback_stops_a_training_between_batches(tmp_path: Path) -> None:
    pytest.importorskip("ultralytics")

    class Stops(Recorder):
        def on_progress(self, progress: Progress) -> None:
            raise StoppedError(15)

    data, network = draw(tmp_path / "data"), detector()
    network.task = "detect"
    settings = DetectorSettings(image_size=SIDE, batch=4)
    with ultralytics_in_use(), pytest.raises(StoppedError):
        DetectorTuner(data, tmp_path / "out", settings, [Stops()]).train(network, 2)
