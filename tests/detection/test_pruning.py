"""Detectors of ultralytics, from weights to a smaller file that the library opens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import Result
from torch import nn
from typer.testing import CliRunner

import secateur as sec
from secateur.cli import app
from secateur.detection import DetectorSettings, open_detector, prune_detector, save_detector
from secateur.detection.data import check_data, read_yolo_labels, with_absolute_path
from secateur.detection.library import ultralytics_in_use
from secateur.detection.raw_outputs import DetectorLoss, with_raw_outputs, without_raw_outputs
from secateur.detection.tuning import DetectorTuner
from secateur.errors import CheckpointError, UsageError
from secateur.jobs.prune import prune
from secateur.jobs.settings import PruneJob
from secateur.recipes import Callback, Recipe
from secateur.settings import flatten
from secateur.training.events import EpochDone
from secateur.training.run_folder import RunFolder, read_config, read_summary
from tests.detection.generated import COLOURS, SIDE, detector, draw, draw_by_class
from tests.libraries import QUIET

pytest.importorskip("ultralytics", reason="needs ultralytics")
pytestmark = QUIET

FEW_LAYERS = "yolov3-tiny"
SETTINGS = DetectorSettings(image_size=SIDE, batch=4, calibration_images=8, options={"workers": 0})
TASKS = [
    pytest.param("yolo11n-seg", "polygons", marks=pytest.mark.slow),
    pytest.param("yolo11n-pose", "points", marks=pytest.mark.slow),
    pytest.param("yolo11n-obb", "rotated", marks=pytest.mark.slow),
    *(
        pytest.param(name, "boxes", marks=pytest.mark.slow)
        for name in ("yolov5n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n")
    ),
]


class Notes(Callback):
    def __init__(self) -> None:
        self.texts: list[str] = []
        self.epochs: list[EpochDone] = []

    def on_epoch_end(self, epoch: EpochDone) -> None:
        self.epochs.append(epoch)

    def on_note(self, text: str) -> None:
        self.texts.append(text)


def state(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_prune_train_save_open_and_train_again(tmp_path: Path) -> None:
    data, network = draw(tmp_path / "data"), detector(FEW_LAYERS)
    before, attributes, notes = state(network), set(vars(network)), Notes()
    result = prune_detector(
        network,
        data,
        sec.Budget(macs=0.5),
        tmp_path / "out",
        Recipe(finetune={"epochs": 1}),
        SETTINGS,
        [notes],
    )
    assert equal(before, network.state_dict())
    assert set(vars(network)) == attributes
    assert result.pruning.ok
    assert result.pruning.cost_after.macs <= 0.5 * result.pruning.cost_before.macs
    assert result.metrics["after"]["fitness"] >= result.metrics["cut"]["fitness"]
    assert [note.partition(":")[0] for note in notes.texts][-1] == "after"
    used = {"epochs": 1, "batch": 4, "imgsz": SIDE, "nbs": 4, "optimizer": "AdamW", "workers": 0}
    assert used.items() <= result.arguments.items()

    with ultralytics_in_use() as ultralytics:
        model = ultralytics.YOLO(str(result.file))
        shapes = {name: tensor.shape for name, tensor in result.network.state_dict().items()}
        assert {name: tensor.shape for name, tensor in model.model.state_dict().items()} == shapes
        for name, tensor in model.model.state_dict().items():
            assert torch.equal(tensor, result.network.state_dict()[name].half().to(tensor.dtype)), name
        found = model.predict(torch.rand(1, 3, SIDE, SIDE), device="cpu")
        assert len(found) == 1

        from secateur.detection.trainers import PrunedDetectionTrainer

        model.train(
            trainer=PrunedDetectionTrainer,
            data=str(data),
            imgsz=SIDE,
            epochs=2,
            batch=4,
            device="cpu",
            plots=False,
            project=str(tmp_path / "again"),
            name="first",
        )
        assert {name: tensor.shape for name, tensor in model.model.state_dict().items()} == shapes
        last = ultralytics.YOLO(str(tmp_path / "again" / "first" / "weights" / "last.pt"))
        assert {name: tensor.shape for name, tensor in last.model.state_dict().items()} == shapes

    for file in sorted((tmp_path / "out" / "fine-tuning" / "weights").iterdir()):
        librarys_trainer_refuses(file, data)


def librarys_trainer_refuses(file: Path, data: Path) -> None:
    with ultralytics_in_use() as ultralytics, pytest.raises(KeyError, match="PrunedDetectionTrainer"):
        ultralytics.YOLO(str(file)).train(data=str(data), epochs=1, device="cpu", project=str(data.parent))


def test_training_may_end_with_the_last_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes, made, created = Notes(), list[str](), DetectorTuner._created

    def noted(self: DetectorTuner, network: nn.Module, epochs: int, name: str) -> Any:
        made.append(name)
        return created(self, network, epochs, name)

    monkeypatch.setattr(DetectorTuner, "_created", noted)
    result = prune_detector(
        detector(FEW_LAYERS),
        draw(tmp_path / "data"),
        sec.Budget(macs=0.5),
        tmp_path / "out",
        Recipe(steps=2, between={"epochs": 1}, finetune={"epochs": 0}),
        SETTINGS,
        [notes],
    )
    assert len(result.pruning.cuts) == 2
    assert not torch.are_deterministic_algorithms_enabled()
    assert result.metrics["after"] == result.metrics["cut"]
    assert made == ["data", "data", "fine-tuning"]  # the first one checks the data before a folder is made
    assert [done.epoch for done in notes.epochs] == [0, 1, 0]
    assert {done.metric_name for done in notes.epochs} == {"mAP50-95"}
    assert [fit.epoch for fit in result.pruning.fits] == [1, 0]


def test_the_librarys_own_trainer_does_not_undo_the_cut_silently(tmp_path: Path) -> None:
    network = detector()
    description = deepcopy(network.yaml)
    data, file = draw(tmp_path / "data"), save_detector(tmp_path / "pruned.pt", network)
    assert network.yaml == description
    librarys_trainer_refuses(file, data)


def test_trainers_refuse_data_of_other_classes() -> None:
    from secateur.detection.trainers import PrunedDetectionTrainer

    trainer, network = PrunedDetectionTrainer.__new__(PrunedDetectionTrainer), detector()
    trainer.args = SimpleNamespace(data="data.yaml")
    for names, message in (
        ({0: "blue", 1: "red"}, "calls a class 'red' that data.yaml calls 'blue'"),
        ({0: "red"}, "has 2 classes, data.yaml has 1"),
    ):
        trainer.data = {"names": names, "nc": len(names)}
        with pytest.raises(UsageError, match=message):
            trainer.get_model(weights=network)
    trainer.data = {"names": dict(enumerate(COLOURS)), "nc": 2}
    assert trainer.get_model(weights=network) is network


def test_an_interrupted_training_of_a_pruned_network_resumes(tmp_path: Path) -> None:
    data = draw(tmp_path / "data")
    small = pruned(detector(FEW_LAYERS), tmp_path)
    file = save_detector(tmp_path / "pruned.pt", small)
    from secateur.detection.trainers import PrunedDetectionTrainer

    def stop(trainer: object) -> None:
        raise KeyboardInterrupt

    arguments = {"data": str(data), "imgsz": SIDE, "batch": 4, "device": "cpu", "plots": False}
    with ultralytics_in_use() as ultralytics:
        model = ultralytics.YOLO(str(file))
        model.add_callback("on_model_save", stop)
        with pytest.raises(KeyboardInterrupt):
            model.train(
                trainer=PrunedDetectionTrainer, epochs=2, project=str(tmp_path), name="run", **arguments
            )
        again = ultralytics.YOLO(str(tmp_path / "run" / "weights" / "last.pt"))
        again.train(trainer=PrunedDetectionTrainer, resume=True)
        shapes = {name: tensor.shape for name, tensor in again.model.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in small.state_dict().items()}


def pruned(network: nn.Module, folder: Path) -> nn.Module:
    raw = with_raw_outputs(network)
    x = torch.rand(2, 3, SIDE, SIDE)
    graph = sec.trace(raw, x)
    plan = sec.make_plan(graph, sec.score(raw, graph, "magnitude"), sec.Budget(macs=0.6))
    return without_raw_outputs(sec.apply_plan(raw, plan))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["yolov8n", pytest.param("rtdetr-l", marks=pytest.mark.slow)])
def test_the_loss_from_raw_outputs_is_that_of_the_library(name: str, training: bool) -> None:
    with ultralytics_in_use():
        from ultralytics.cfg import get_cfg

        network: Any = (
            detector(name) if name == "yolov8n" else sec.build(f"ultralytics:{name}.yaml", classes=2)
        )
        network.args, network.nc = get_cfg(), len(COLOURS)
        images = torch.rand(2, 3, SIDE, SIDE)
        batch = {
            "img": images,
            "batch_idx": torch.tensor([0.0, 1.0]),
            "cls": torch.tensor([[1.0], [0.0]]),
            "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.6, 0.2, 0.3]]),
        }
        raw = with_raw_outputs(network).train(training)
        network.train(training)
        outputs = raw(images)
        expected = network.loss(batch, network(images))[0].sum() / 2
        found = DetectorLoss(raw)(outputs, batch)
    torch.testing.assert_close(found, expected)


def test_blocks_that_exporters_split_compute_the_same_after_a_cut(tmp_path: Path) -> None:
    small, x = pruned(detector(), tmp_path), torch.rand(1, 3, SIDE, SIDE)
    expected = small(x)[0]
    blocks: list[Any] = [module for module in small.modules() if hasattr(module, "forward_split")]
    assert blocks
    for block in blocks:
        block.forward = block.forward_split  # as the exporter of ultralytics does
    assert torch.equal(small(x)[0], expected)


def test_a_busy_machine_does_not_change_which_boxes_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    box = torch.tensor([32.0, 32, 20, 20, 0.9, 0.1])  # centre, size, and the scores of two classes
    predictions = box[None, :, None].repeat(3, 1, 2)
    with ultralytics_in_use():
        from ultralytics.utils import nms

        clock = iter(range(0, 10**6, 1000))
        monkeypatch.setattr(nms.time, "time", lambda: float(next(clock)))
        found = nms.non_max_suppression(predictions)
        limited = nms.non_max_suppression.func(predictions)
    assert [len(boxes) for boxes in found] == [1, 1, 1]
    assert [len(boxes) for boxes in limited] != [1, 1, 1]


@pytest.mark.slow
def test_maps_between_backbone_and_heads_can_be_pruned() -> None:
    network, x = detector(), torch.rand(2, 3, SIDE, SIDE)
    whole, raw = sec.trace(network, x), sec.trace(with_raw_outputs(network), x)
    more = {group.name for group in raw.prunable} - {group.name for group in whole.prunable}
    assert {"model.15.cv2.conv", "model.18.cv2.conv", "model.21.cv2.conv"} <= more


@pytest.mark.parametrize(("name", "labels"), TASKS)
def test_every_generation_and_task(name: str, labels: str, tmp_path: Path) -> None:
    data = draw(tmp_path / "data", kind=labels)
    result = prune_detector(
        detector(name, 0.25 if name == "yolo12n" else 0.15),  # its attention needs multiples of 32 channels
        data,
        sec.Budget(macs=0.6),
        tmp_path / "out",
        Recipe(finetune={"epochs": 1}),
        SETTINGS,
    )
    assert result.pruning.ok
    assert result.pruning.cost_after.macs <= 0.6 * result.pruning.cost_before.macs
    assert open_detector(result.file, trusted=True).state_dict().keys() == result.network.state_dict().keys()


def refused(tmp_path: Path, network: nn.Module, data: Path, **settings: object) -> str:
    with pytest.raises(UsageError) as caught:
        prune_detector(network, data, sec.Budget(macs=0.5), tmp_path / "out", **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def replaced(data: Path, old: str, new: str) -> Path:
    data.write_text(data.read_text().replace(old, new))
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("names:\n  0: red\n  1: blue\n", "names: [red, blue, green]\n"), "has 2 classes, .* has 3"),
        (("0: red", "0: purple"), "calls a class 'red' that .* calls 'purple'"),
        (("val: images/val", "val: images/nowhere"), "val: there is no .*nowhere"),
        (("train: images/train\n", ""), "has no train"),
        (("names:\n  0: red\n  1: blue\n", "names: 2\n"), "names: 2 is no list"),
    ],
)
def test_wrong_data_files_are_refused(change: Sequence[str], message: str, tmp_path: Path) -> None:
    data = replaced(draw(tmp_path / "data", images=2), *change)
    with pytest.raises(UsageError, match=message):
        prune_detector(detector(), data, sec.Budget(macs=0.5), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images\nval: [", r"cannot be read as YAML: line 2: .*stream end"),
        ("- red", "holds no settings"),
    ],
)
def test_a_broken_data_file_leaves_an_earlier_run_as_it_was(text: str, message: str, tmp_path: Path) -> None:
    data, run = tmp_path / "data.yaml", tmp_path / "run"
    data.write_text(text)
    with RunFolder(run) as earlier:
        earlier.remember({"curves": [1.0]})
    file = save_detector(tmp_path / "net.pt", detector(FEW_LAYERS))
    for out in (run, tmp_path / "new"):
        job = PruneJob(
            network={"source": str(file), "trusted": True},
            data={"source": str(data)},
            budget={"macs": 0.5},
            out=out,
            overwrite=True,
        )
        with pytest.raises(UsageError, match=message):
            prune(job)
    assert read_summary(run) == {"status": "done"}
    assert (run / "measured.json").is_file()
    assert not (tmp_path / "new").exists()


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    data = draw(tmp_path / "data", images=4)
    for file in (tmp_path / "data" / "labels").rglob("*.txt"):
        file.unlink()
    assert "has an object" in refused(tmp_path, detector(), data, settings=SETTINGS)
    shutil.rmtree(tmp_path / "data" / "labels")
    assert "has a file of labels" in refused(tmp_path, detector(), data, settings=SETTINGS)
    for file in (tmp_path / "data" / "images" / "train").iterdir():
        file.unlink()
    message = refused(
        tmp_path, detector(), replaced(data, f"path: {tmp_path / 'data'}", "path: ."), settings=SETTINGS
    )
    assert message.startswith(f"{data}: train: no image in")


def test_broken_labels_are_named_and_counted(tmp_path: Path) -> None:
    data, notes = draw(tmp_path / "data"), Notes()
    (tmp_path / "data" / "labels" / "train" / "3.txt").write_text("7 0.5 0.5 0.1 0.1\n")
    (tmp_path / "data" / "labels" / "train" / "4.txt").write_text("")
    (tmp_path / "data" / "labels" / "val" / "5.txt").write_text("0 0.5 0.5 0.1 0\n0 0.5 0.5 0.4 0.4\n")
    network, once = detector(FEW_LAYERS), Recipe.preset("one-shot")
    prune_detector(network, data, sec.Budget(macs=0.8), tmp_path / "out", once, SETTINGS, [notes])
    assert "val: 1 images with a box without width or height, which ultralytics keeps: 5.png" in notes.texts
    assert "train: 1 images left out, broken or with wrong labels: 3.png" in notes.texts
    assert "train: 1 images without an object" in notes.texts


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("yolo11n-seg", "Please supply a segment dataset"),
        ("yolo11n-pose", "has no kpt_shape"),
        ("yolov8n-cls", "a classifier needs a folder with train/"),
    ],
)
def test_the_head_of_another_task_is_refused(name: str, message: str, tmp_path: Path) -> None:
    data = draw(tmp_path / "data", images=4)
    assert message in refused(tmp_path, detector(name), data, settings=SETTINGS)


def test_other_classes_of_a_classifier_and_other_key_points_are_refused(tmp_path: Path) -> None:
    folder = draw_by_class(tmp_path / "images", images=2)
    assert "has the classes blue, red, the network has red, blue" in refused(
        tmp_path, detector("yolov8n-cls"), folder
    )
    assert "not a data.yaml" in refused(tmp_path, detector(), folder)
    data = replaced(draw(tmp_path / "points", images=2, kind="points"), "[2, 2]", "[3, 2]")
    assert "key points of shape [2, 2]" in refused(tmp_path, detector("yolo11n-pose"), data)


def test_a_relative_path_is_looked_for_beside_the_data_file(tmp_path: Path) -> None:
    data = replaced(draw(tmp_path / "data", images=4), f"path: {tmp_path / 'data'}", "path: .")
    assert check_data(data)["path"] == str(tmp_path / "data")
    (tmp_path / "out").mkdir()
    found = with_absolute_path(data, check_data(data), tmp_path / "out")
    assert found == tmp_path / "out" / "data.yaml"
    assert check_data(found) == check_data(data)
    with ultralytics_in_use():
        from ultralytics.data.utils import check_det_dataset

        assert Path(check_det_dataset(str(found))["train"]) == tmp_path / "data" / "images" / "train"
        from secateur.detection.trainers import PrunedDetectionTrainer

        arguments = {"data": str(data), "project": str(tmp_path), "name": "more", "task": "detect"}
        trainer: Any = PrunedDetectionTrainer(overrides={**arguments, "device": "cpu", "model": "none.pt"})
        assert Path(trainer.data["train"]) == tmp_path / "data" / "images" / "train"
        assert Path(check_det_dataset(trainer.args.data)["val"]) == tmp_path / "data" / "images" / "val"
    absolute = draw(tmp_path / "other", images=2)
    assert with_absolute_path(absolute, check_data(absolute), tmp_path / "out") == absolute


def test_a_folder_with_a_data_file_names_it(tmp_path: Path) -> None:
    data = draw(tmp_path / "data", images=2)
    assert f"give --data {data}" in refused(tmp_path, detector(), data.parent)


def test_settings_of_another_trainer_are_refused(tmp_path: Path) -> None:
    recipe = Recipe(finetune={"optimizer": {"learning_rate": 0.1}})
    message = refused(tmp_path, detector(), draw(tmp_path / "data", images=2), recipe=recipe)
    assert "finetune.optimizer" in message
    assert "detector.options" in message


def test_images_that_the_stride_does_not_divide_are_refused() -> None:
    with pytest.raises(UsageError, match="multiple of 32"):
        DetectorSettings(image_size=100)


def test_files_are_opened_only_if_trusted(tmp_path: Path) -> None:
    file = save_detector(tmp_path / "net.pt", detector())
    with pytest.raises(UsageError, match="--trusted"):
        open_detector(file)
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other.pt is no checkpoint of ultralytics"):
        open_detector(tmp_path / "other.pt", trusted=True)
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "linear.pt")
    with pytest.raises(CheckpointError, match=r"linear.pt is no .*: its network is a Linear"):
        open_detector(tmp_path / "linear.pt", trusted=True)


def test_the_task_of_a_file_is_that_of_its_head(tmp_path: Path) -> None:
    network = detector("yolov8n-seg")
    assert "task" not in vars(network)
    with ultralytics_in_use() as ultralytics:
        model = ultralytics.YOLO("yolov8n.yaml")
        model.model = network
        model.save(str(tmp_path / "seg.pt"))  # without a task in it
    opened: Any = open_detector(tmp_path / "seg.pt", trusted=True)
    assert opened.task == "segment"
    data = draw(tmp_path / "data", images=2)
    assert "Please supply a segment dataset" in refused(tmp_path, opened, data, settings=SETTINGS)


def test_folders_may_be_named_as_one_level_up(tmp_path: Path) -> None:
    data = replaced(draw(tmp_path / "data", images=2), "val: images", "val: ../images")
    assert check_data(data)["val"] == "../images/val"


def secateur(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "labels", "metric"),
    [
        ("yolo11n-seg", "polygons", "mAP50-95"),
        ("yolo11n-pose", "points", "mAP50-95"),
        ("yolov8n-cls", "classes", "top-1"),
    ],
)
def test_other_tasks_on_the_command_line(name: str, labels: str, metric: str, tmp_path: Path) -> None:
    network: Any = detector(name, 0.1)
    if labels == "classes":
        data, network.names = draw_by_class(tmp_path / "data"), dict(enumerate(sorted(COLOURS)))
    else:
        data = draw(tmp_path / "data", kind=labels)
    file, run = save_detector(tmp_path / "net.pt", network), tmp_path / "run"
    settings = [f"detector.image_size={SIDE}", "detector.calibration_images=8", "detector.batch=4"]
    sets = [
        word for text in [*settings, "finetune.epochs=1", "latency_seconds=0"] for word in ("--set", text)
    ]
    done = secateur("prune", file, "--trusted", "--data", data, "--macs", 0.6, "--out", run, *sets)
    assert done.exit_code == 0, done.output
    assert metric in done.output
    found = secateur("evaluate", run / "pruned.pt", "--trusted", "--data", data, "--size", SIDE)
    assert found.exit_code == 0, found.output
    assert metric in found.output


def words_of_prune(folder: Path) -> list[object]:
    """Draw images, write a detector, and return the words of a command that prunes it to ``run``."""
    data, file = draw(folder / "data"), save_detector(folder / "net.pt", detector(FEW_LAYERS))
    settings = [f"detector.image_size={SIDE}", "detector.calibration_images=8", "detector.batch=4"]
    sets = [
        word for text in [*settings, "finetune.epochs=1", "latency_seconds=0"] for word in ("--set", text)
    ]
    return ["prune", file, "--data", data, "--macs", 0.5, "--out", folder / "run", *sets]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in ``data``, a detector in ``net.pt``, and its finished run in ``run``."""
    place = tmp_path_factory.mktemp("detector")
    done = secateur(*words_of_prune(place), "--trusted")
    assert done.exit_code == 0, done.output
    assert "mAP50-95" in done.output
    return place


def test_wrong_words_on_the_command_line_leave_no_run(tmp_path: Path) -> None:
    words = words_of_prune(tmp_path)
    data, file, run = tmp_path / "data" / "data.yaml", tmp_path / "net.pt", tmp_path / "run"
    frontier = ["frontier", file, "--data", data, "--out", run]
    for command in (
        *(words, ["inspect", file], ["measure", file], ["evaluate", file, "--data", data]),
        frontier,
    ):
        refused = secateur(*command)
        assert refused.exit_code == 2
        assert "--trusted" in refused.output
    refused = secateur("train", "--model", file, "--data", "digits", "--out", run)
    assert refused.exit_code == 2
    assert f"YOLO('{file}').train(" in refused.output
    wrong = tmp_path / "data" / "wrong.yaml"
    wrong.write_text(data.read_text().replace("0: red", "0: purple"))
    failed = secateur(*(wrong if word == data else word for word in words), "--trusted")
    assert failed.exit_code == 2
    assert "calls a class 'red'" in failed.output
    # The second one is the default, which has no effect either.
    for text in (
        "data.batch_size=3",
        "data.held_out=0.1",
        "distillation.divergence=reverse",
        "finetune.warmup=0.2",
    ):
        idle = secateur(*words, "--trusted", "--set", text)
        assert idle.exit_code == 2
        assert f"{text.partition('=')[0]}: no effect" in " ".join(idle.output.split())
    assert not run.exists()
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    other = secateur("inspect", tmp_path / "other.pt", "--trusted")
    assert other.exit_code == 1
    assert "is no checkpoint of ultralytics" in " ".join(other.output.split())


def test_the_command_line_writes_a_run(folder: Path) -> None:
    run = folder / "run"
    assert "ultralytics.warmup_epochs" in (run / "report.html").read_text()
    recorded = dict(flatten(read_config(run)))
    assert {"recipe.finetune.epochs", "detector.batch", "data.source"} <= recorded.keys()
    idle = (
        "recipe.finetune.optimizer",
        "recipe.finetune.warmup",
        "recipe.distillation.weight",
        "data.held_out",
    )
    assert not any(name.startswith(idle) for name in recorded)
    small = open_detector(run / "pruned.pt", trusted=True)
    again = sec.load(run / "checkpoints" / "best.safetensors")
    shapes = {name: tensor.shape for name, tensor in small.state_dict().items()}
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == shapes
    assert (
        "--overwrite" in secateur("prune", "--recipe", run / "config.toml", "--trusted", "--out", run).output
    )


def test_commands_on_a_run_of_a_detector(folder: Path, tmp_path: Path) -> None:
    data, file, run = folder / "data" / "data.yaml", folder / "net.pt", folder / "run"
    shown = secateur("inspect", run / "pruned.pt", "--trusted", "--input", f"3,{SIDE},{SIDE}")
    assert shown.exit_code == 0, shown.output
    for network in (run / "pruned.pt", run):
        found = secateur("evaluate", network, "--trusted", "--data", data, "--size", SIDE)
        assert found.exit_code == 0, found.output
        assert "mAP50-95" in found.output
    files = (file, run / "pruned.pt")
    measured = secateur("measure", *files, "--trusted", "--size", SIDE, "--seconds", 0, "--json")
    assert measured.exit_code == 0, measured.output
    rows = json.loads(measured.stdout)["networks"]
    assert rows[1]["macs"] <= 0.5 * rows[0]["macs"]
    assert [row["file_bytes"] for row in rows] == [place.stat().st_size for place in files]
    for source in (run / "pruned.pt", run, run / "checkpoints" / "best.safetensors"):
        export = ["export", source, "--out", tmp_path / "net.onnx"]
        for command in (["predict", source, "image.png"], export, [*export, "--format", "hf"]):
            refused = secateur(*command)
            assert refused.exit_code == 2, refused.output
            assert f"YOLO('{run / 'pruned.pt'}').{command[0]}(" in refused.output
    refused = secateur("export", run / "checkpoints" / "original.safetensors", "--out", tmp_path / "net.onnx")
    assert refused.exit_code == 2
    assert "write a .pt file of it with secateur.detection.save_detector" in refused.output


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["data.yaml", "Annotations"])
def test_a_network_by_name_with_weights_needs_no_pickle(labels: str, tmp_path: Path) -> None:
    data, weights, run = draw(tmp_path / "data", images=4), tmp_path / "weights.pth", tmp_path / "run"
    network = sec.build("ultralytics:yolov8n.yaml", classes=2)
    torch.save(network.state_dict(), weights)
    given = [
        "detector.image_size=64",
        "detector.calibration_images=4",
        "detector.batch=4",
        "latency_seconds=0",
    ]
    if labels == "Annotations":
        data = as_voc(data)
        given.append('detector.classes=["red", "blue"]')
    sets = [word for text in given for word in ("--set", text)]
    words = ["--weights", weights, "--data", data, "--macs", 0.8, "--out", run, "--no-finetune", *sets]
    untrained = secateur("prune", "ultralytics:yolov8n.yaml", *words[2:])
    assert untrained.exit_code == 2
    assert "comes without weights" in untrained.output
    done = secateur("prune", "ultralytics:yolov8n.yaml", *words)
    assert done.exit_code == 0, done.output
    small: Any = open_detector(run / "pruned.pt", trusted=True)
    assert small.names == {0: "red", 1: "blue"}
    kept = sec.load(run / "checkpoints" / "original.safetensors").state_dict()
    assert equal(kept, network.state_dict())
    again = secateur(
        "prune", run, "--data", data, "--params", 0.8, "--out", tmp_path / "b", "--no-finetune", *sets
    )
    assert again.exit_code == 0, again.output
    counts = [
        sum(map(torch.numel, open_detector(place / "pruned.pt", trusted=True).parameters()))
        for place in (run, tmp_path / "b")
    ]
    assert counts[1] <= 0.8 * counts[0]


def as_voc(data: Path) -> Path:
    """Write the labels of a data file as VOC labels, and return their folder."""
    folder = data.parent / "voc"
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    found = read_yolo_labels(data)
    for split, images in found.splits.items():
        for image in images:
            name = f"{split}-{image.file.stem}"
            shutil.copy(image.file, folder / "JPEGImages" / f"{name}.png")
            objects = "".join(
                f"<object><name>{label}</name><bndbox><xmin>{edges[0]}</xmin><ymin>{edges[1]}</ymin>"
                f"<xmax>{edges[2]}</xmax><ymax>{edges[3]}</ymax></bndbox></object>"
                for label, *edges in image.objects
            )
            size = f"<size><width>{SIDE}</width><height>{SIDE}</height></size>"
            (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
        names = "".join(f"{split}-{image.file.stem}\n" for image in images)
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(names)
    return folder
