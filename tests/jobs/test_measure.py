from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

import secateur as sec
from secateur.errors import DataError, UsageError
from secateur.export import Description
from secateur.export import export as write
from secateur.jobs.export import export
from secateur.jobs.measure import measure
from secateur.jobs.settings import Conditions, DataChoice, ExportChoice, NetworkChoice
from secateur.jobs.timing import Place
from secateur.latency import InterleavedTimes
from secateur.models import ModelSpec
from secateur.training.run_folder import RunFolder


def test_networks_are_measured_beside_each_other(trained: Path) -> None:
    choices = [
        NetworkChoice(source=str(trained)),
        NetworkChoice(source="secateur:digits", weights="none"),
    ]
    found = measure(choices, DataChoice(source="digits"), conditions=Conditions(seconds=0, batches=(4,)))
    first, second = found["networks"]
    needs = sec.cost(sec.build("secateur:digits"), torch.zeros(1, 1, 8, 8))
    assert (
        (first["macs"], first["params"]) == (second["macs"], second["params"]) == (needs.macs, needs.params)
    )
    assert first["file_bytes"] == (trained / "checkpoints" / "best.safetensors").stat().st_size
    assert second["file_bytes"] is None
    assert first["top1"] > 0.5 > second["top1"]
    assert found["latency"]["batch"] == 4
    assert first["latency_ms"] > 0


def test_inputs_of_different_sizes_cannot_be_timed_together(trained: Path) -> None:
    choices = [NetworkChoice(source=str(trained)), NetworkChoice(source="resnet18", weights="none")]
    with pytest.raises(UsageError, match="1x8x8 and 3x224x224; give one --size"):
        measure(choices)


def test_a_file_exported_into_a_run_does_not_keep_it_from_replacement(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    export(NetworkChoice(source=str(run)), ExportChoice(out=run / "small.pt2"), seconds=0)
    RunFolder(run, overwrite=True).close()
    assert not (run / "small.pt2").exists()


def test_an_exported_file_is_as_good_as_its_network_in_every_runtime(trained: Path, tmp_path: Path) -> None:
    network, file = NetworkChoice(source=str(trained)), tmp_path / "digits.onnx"
    data = DataChoice(source="digits")
    done = export(network, ExportChoice(out=file, weights_as="int8"), data, seconds=0)
    assert done["weights_as"] == "int8"
    assert done["check"]["inputs"] == "given"
    whole, eight = done["networks"]
    assert abs(whole["top1"] - eight["top1"]) < 0.03
    assert eight["file_bytes"] == file.stat().st_size < 0.4 * whole["file_bytes"]
    conditions = Conditions(seconds=0, runtimes=("eager", "bf16", "onnxruntime"), threads=(1,))
    found = measure([network, NetworkChoice(source=str(file))], conditions=conditions)
    rows = [(row["candidate"], row["runtime"]) for row in found["timings"]]
    assert rows == [(0, "eager"), (0, "bf16"), (0, "onnxruntime"), (1, "onnxruntime")]
    for row in found["timings"]:
        assert row["low_ms"] <= row["median_ms"] <= row["high_ms"]
        assert (row["batch"], row["threads"], row["device"]) == (1, 1, "cpu")
    assert [row["times_as_fast"] for row in found["timings"][:3]] == [1, 1, 1]
    assert found["timings"][3]["times_as_fast"] > 0


def test_each_is_compared_with_the_first_in_its_runtime(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Round by round."""
    times = {
        (0, "eager"): [10.0, 20.0, 30.0],
        (0, "bf16"): [5.0, 10.0, 15.0],
        (1, "eager"): [20.0, 5.0, 6.0],
        (1, "bf16"): [1.0, 2.0, 3.0],
    }
    asked: list[dict[Place, Place]] = []

    def measured(
        runs: dict[Place, object], references: dict[Place, Place], **how: object
    ) -> InterleavedTimes[Place]:
        asked.append(references)
        return InterleavedTimes({place: times[place] for place in runs})

    monkeypatch.setattr("secateur.jobs.timing.interleaved_timing", measured)
    network = NetworkChoice(source=str(trained))
    found = measure([network, network], conditions=Conditions(runtimes=("eager", "bf16"), seconds=0))
    assert asked == [{place: (0, place[1]) for place in times}]
    ratios = [row["times_as_fast"] for row in found["timings"]]
    assert ratios == pytest.approx([1, 1, 4, 5])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its peak memory")
def test_peak_memory_is_that_of_the_network_and_not_of_the_process() -> None:
    choice = NetworkChoice(source="resnet18", weights="none", size=64)
    conditions = Conditions(seconds=0, memory=True)
    [row] = measure([choice], conditions=conditions)["networks"]
    # The weights alone need as much; the libraries would need several times more.
    assert row["params"] * 4 <= row["memory_bytes"] < 3 * row["params"] * 4


def test_a_foreign_file_says_nothing_of_images(tmp_path: Path) -> None:
    file = tmp_path / "plain.pt2"
    write(file, sec.build("secateur:digits"), torch.zeros(2, 1, 8, 8))
    with pytest.raises(DataError, match="does not say how images are prepared"):
        measure(
            [NetworkChoice(source=str(file), trusted=True)],
            DataChoice(source="digits"),
            conditions=Conditions(seconds=0),
        )


def test_a_file_for_other_classes_is_refused(tmp_path: Path) -> None:
    file, spec = tmp_path / "other.pt2", ModelSpec.parse("secateur:digits")
    net = sec.build("secateur:digits")
    about = Description(spec.input, list("abcdefghij"))
    write(file, net, torch.zeros(2, 1, 8, 8), description=about)
    with pytest.raises(DataError, match="has other classes than the data"):
        measure(
            [NetworkChoice(source=str(file), trusted=True)],
            DataChoice(source="digits"),
            conditions=Conditions(seconds=0),
        )
