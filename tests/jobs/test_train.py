from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur as sec
from secateur.errors import CheckpointError, DataError, TrainingError, UsageError
from secateur.jobs.settings import TrainJob
from secateur.jobs.train import train
from secateur.training.events import EpochDone
from secateur.training.run_folder import RunError, read_config, read_metrics, read_summary
from tests.recorder import Recorder


def job(out: Path, network: str | dict[str, Any], **changes: Any) -> TrainJob:
    values: dict[str, Any] = {
        "network": {"source": network, "size": 8} if isinstance(network, str) else network,
        "data": {"source": "digits", "batch_size": 64},
        "out": out,
        "fit": {"epochs": 1},
        "latency_seconds": 0,
    }
    return TrainJob(**(values | changes))


def test_a_run_says_all_that_is_needed_to_repeat_it(trained: Path) -> None:
    config = read_config(trained)
    assert config["command"] == "train"
    assert config["version"] == sec.__version__
    again = {key: value for key, value in config.items() if key not in ("command", "version")}
    assert TrainJob(**again).model_dump(mode="json") == TrainJob(
        network={"source": "secateur:digits"},
        data={"source": "digits", "batch_size": 64},
        out=trained,
        latency_seconds=0,
        fit={"epochs": 1, "optimizer": {"learning_rate": 0.05}},
    ).model_dump(mode="json")


def test_the_summary_names_what_the_run_depends_on(trained: Path, tmp_path: Path) -> None:
    summary = read_summary(trained)
    config = read_config(trained)
    assert summary["settings"] == {key: value for key, value in config.items() if key != "version"}
    assert summary["seed"] == 0
    environment = summary["environment"]
    assert environment["torch"] == torch.__version__
    assert environment["threads"] == torch.get_num_threads()
    assert environment["processes"] == 1
    assert {"python", "numpy", "pillow", "system", "instructions", "precision"} <= environment.keys()
    assert summary["start"]["images"] == {"train": 1146, "val": 201, "test": 450}
    # The same settings lead to the same start and the same end.
    again = {key: value for key, value in summary["settings"].items() if key != "command"}
    train(TrainJob(**again | {"out": tmp_path / "again"}))
    repeated = read_summary(tmp_path / "again")
    assert repeated["start"] == summary["start"]
    best = "checkpoints/best.safetensors"
    assert (tmp_path / "again" / best).read_bytes() == (trained / best).read_bytes()


def test_the_summary_holds_the_figures_of_the_best_checkpoint(trained: Path) -> None:
    summary = read_summary(trained)
    assert summary["status"] == "done"
    assert summary["model"] == "secateur:digits"
    best = trained / "checkpoints" / "best.safetensors"
    model = sec.load(best)
    figures = summary["network"]
    assert figures["params"] == sum(parameter.numel() for parameter in model.parameters())
    assert figures["macs"] == sec.cost(model, torch.zeros(2, 1, 8, 8)).macs
    assert figures["file_bytes"] == best.stat().st_size
    assert figures["latency_ms"] > 0
    assert 0.5 < figures["top1"] <= 1
    assert summary["classes"] == list("0123456789")
    assert {"reading", "training", "evaluation", "total"} <= summary["seconds"].keys()


def test_the_same_seed_gives_the_same_bits_and_the_callers_numbers_go_on(
    tmp_path: Path, small_network: str
) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(job(tmp_path / name, small_network, seed=seed))
    assert torch.equal(torch.rand(2), expected)
    files = [(tmp_path / name / "checkpoints" / "last.safetensors").read_bytes() for name in "abc"]
    assert files[0] == files[1] != files[2]


def test_epochs_are_heard_and_written_down(tmp_path: Path, small_network: str) -> None:
    heard = Recorder()
    train(job(tmp_path / "run", small_network, fit={"epochs": 2}), [heard])
    epochs = [event for event in heard if isinstance(event, EpochDone)]
    written = [record for record in read_metrics(tmp_path / "run") if record["event"] == "epoch"]
    assert [record["loss"] for record in written] == [event.loss for event in epochs]
    assert [event.epoch for event in epochs] == [0, 1, 2]
    training = read_summary(tmp_path / "run")["training"]
    assert training["start"]["top1"] == epochs[0].metric
    assert training["kept"]["top1"] == epochs[training["kept_epoch"]].metric >= epochs[0].metric
    assert training["learning_rate"] > 0


def test_with_nothing_held_out_the_last_network_is_kept(
    tmp_path: Path, folder: Path, small_network: str
) -> None:
    data = {"source": str(folder), "batch_size": 4, "held_out": 0}
    summary = train(job(tmp_path / "run", {"source": small_network, "size": 16}, data=data))
    assert summary["start"]["images"]["val"] == 0
    assert summary["training"]["kept"] is None
    files = [tmp_path / "run" / "checkpoints" / f"{name}.safetensors" for name in ("best", "last")]
    best, last = (sec.load(file, sec.build(small_network, classes=2)) for file in files)
    for one, two in zip(best.parameters(), last.parameters(), strict=True):
        assert torch.equal(one, two)


def test_blended_images_are_learnt_from(tmp_path: Path) -> None:
    """With smoothed labels too; what it comes to is judged on whole images."""
    fit = {"epochs": 2, "label_smoothing": 0.1, "optimizer": {"learning_rate": 0.05}}
    found = {}
    for name, mixup in (("plain", 0.0), ("blended", 0.4), ("again", 0.4)):
        data = {"source": "digits", "batch_size": 64, "mixup": mixup}
        summary = train(job(tmp_path / name, "secateur:digits", data=data, fit=fit))
        assert summary["network"]["top1"] > 0.5
        found[name] = (tmp_path / name / "checkpoints" / "best.safetensors").read_bytes()
    assert found["blended"] == found["again"] != found["plain"]


def test_tensors_without_weights_are_named(tmp_path: Path, small_network: str) -> None:
    full = sec.build(small_network, classes=10)
    weights = {name: value for name, value in full.state_dict().items() if not name.startswith("7")}
    torch.save(weights, tmp_path / "features.pth")
    heard = Recorder()
    choice = {"source": small_network, "size": 8, "weights": str(tmp_path / "features.pth")}
    train(job(tmp_path / "run", choice, fit={"epochs": 0}), [heard])
    notes = [event for event in heard if isinstance(event, str)]
    assert any("7.weight, 7.bias are new" in note for note in notes)
    stored = sec.load(tmp_path / "run" / "checkpoints" / "last.safetensors", sec.build(small_network))
    assert torch.equal(stored[0].weight, full[0].weight)


def test_training_goes_on_from_a_run(tmp_path: Path, trained: Path) -> None:
    heard = Recorder()
    train(job(tmp_path / "run", {"source": str(trained)}, fit={"epochs": 0}), [heard])
    assert any(isinstance(event, str) and "weights from" in event for event in heard)
    first, second = (
        sec.load(path / "checkpoints" / "best.safetensors") for path in (trained, tmp_path / "run")
    )
    assert all(
        torch.equal(one, two) for one, two in zip(first.parameters(), second.parameters(), strict=True)
    )


def test_a_loss_that_is_not_a_number_keeps_the_last_good_state(tmp_path: Path, small_network: str) -> None:
    out = tmp_path / "run"
    fit = {"epochs": 3, "schedule": "constant", "optimizer": {"learning_rate": 1e20}}
    with pytest.raises(TrainingError, match=r"the loss is .* the last good state is .*last.safetensors"):
        train(job(out, small_network, fit=fit))
    model = sec.load(out / "checkpoints" / "last.safetensors", sec.build(small_network))
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    summary = read_summary(out)
    assert summary["status"] == "failed"
    assert "the loss is" in summary["error"]


def test_bad_places_are_refused_before_anything_is_done(tmp_path: Path, small_network: str) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        train(job(tmp_path / "run", small_network, data={"source": str(tmp_path / "absent")}))
    assert not (tmp_path / "run").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="other files"):
        train(job(tmp_path / "full", small_network, overwrite=True))
    with pytest.raises(UsageError, match="does not exist"):
        train(job(tmp_path / "run", {"source": str(tmp_path / "no" / "run")}))
    (tmp_path / "broken.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        train(job(tmp_path / "run", {"source": str(tmp_path / "broken.safetensors")}))


NETWORKS = """
import torch
from torch import nn


class Branching(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.head = nn.Linear(192, num_classes)

    def forward(self, x):
        x = x.flatten(1)
        if x.mean() > 0:
            x = x.relu()
        return self.head(x)


def of_another_size(num_classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(65, num_classes))
"""


@pytest.mark.parametrize(
    ("name", "device", "error", "words"),
    [
        ("Branching", "cpu", sec.TraceError, "branches on the values of a tensor"),
        ("of_another_size", "cpu", UsageError, "fails on 2 images of 3x8x8"),
        ("of_another_size", "cuda", UsageError, "there is no cuda device on this machine"),
    ],
)
def test_what_would_fail_after_the_training_fails_before_it(
    tmp_path: Path, name: str, device: str, error: type[Exception], words: str
) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has such a device")
    (tmp_path / "nets.py").write_text(NETWORKS)
    heard = Recorder()
    choice = {"source": f"{tmp_path / 'nets.py'}:{name}", "size": 8}
    with pytest.raises(error, match=words) as caught:
        train(job(tmp_path / "run", choice, device={"accelerator": device}), [heard])
    assert "\n" not in str(caught.value)
    assert not heard.of(EpochDone)


def test_unreadable_images_are_named_and_counted_or_refused(
    tmp_path: Path, folder: Path, small_network: str
) -> None:
    heard = Recorder()
    choice = {"source": str(folder), "batch_size": 4}
    network = {"source": small_network, "size": 16}
    summary = train(job(tmp_path / "run", network, data=choice), [heard])
    notes = [event for event in heard if isinstance(event, str)]
    assert any("left out" in note and "0.png" in note for note in notes)
    assert "left out 1 image that could not be read" in notes
    assert len(summary["skipped"]) == 1
    assert list(summary["classes"]) == ["dark", "light"]
    json.dumps(read_summary(tmp_path / "run"))
    strict = choice | {"strict": True}
    with pytest.raises(DataError, match=r"0.png"):
        train(job(tmp_path / "other", network, data=strict))
