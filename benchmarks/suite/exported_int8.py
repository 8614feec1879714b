"""Pruning and weights of eight bits together, on handwritten digits.

A network for digits is trained and pruned to a quarter of its MACs; both are exported to ONNX in float32 and
with int8 weights, and evaluated on the test images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import benchmark
from benchmarks.exported import VERSIONS
from benchmarks.tables import Table
from secateur.jobs.export import export
from secateur.jobs.measure import measure
from secateur.jobs.prune import prune
from secateur.jobs.settings import Conditions, DataChoice, ExportChoice, NetworkChoice, PruneJob, TrainJob
from secateur.jobs.train import train
from secateur.recipes import Recipe


class Options(benchmark.Options):
    """Options.

    Attributes:
        work: folder of the runs and the exported files.
        epochs: of training.
        batch: examples in a timed forward pass.
        seconds: least time for each.
    """

    work: Path = Path("runs/benchmarks/int8")
    epochs: int = 12
    batch: int = 16
    seconds: float = 1.0


class Row(benchmark.Row):
    """One network or file."""

    network: str
    top1: float
    file_bytes: int
    latency_ms: float


CASES: Mapping[str, Mapping[str, Any]] = {}
QUICK: Mapping[str, Any] = {"work": "runs/benchmarks/int8-quick", "epochs": 1, "seconds": 0.1}
DATA = DataChoice(source="digits", batch_size=32)


def run(options: Options) -> Iterator[Row]:
    """Train, prune and export what is missing, and measure all."""
    choices = []
    for version, folder in runs(options).items():
        choices.append(NetworkChoice(source=str(folder)))
        for weights in ("float32", "int8"):
            file = options.work / f"digits-{version}-{weights}.onnx"
            if not file.exists():
                wanted = ExportChoice(out=file, weights_as=weights)
                export(NetworkChoice(source=str(folder)), wanted, DATA, seconds=0)
            choices.append(NetworkChoice(source=str(file)))
    conditions = Conditions(batches=(options.batch,), seconds=options.seconds)
    for row in measure(choices, DATA, conditions=conditions)["networks"]:
        yield Row(
            network=Path(row["name"]).name,
            top1=row["top1"],
            file_bytes=row["file_bytes"],
            latency_ms=row["latency_ms"],
        )


def runs(options: Options) -> dict[str, Path]:
    """Train and prune, where that was not done before."""
    folders = {version: options.work / f"digits-{version}" for version in VERSIONS}
    if not (folders["pruned"] / "summary.json").exists():
        optimizer = {"learning_rate": 0.05, "weight_decay": 5e-4}
        slower = {**optimizer, "learning_rate": 0.02}
        network = {"source": "secateur:digits", "weights": "none"}
        fit = {"epochs": options.epochs, "optimizer": optimizer}
        train(TrainJob(network=network, data=DATA, out=folders["original"], overwrite=True, fit=fit))
        recipe = Recipe.preset(
            "default",
            steps=5,
            between={"optimizer": slower},
            finetune={"epochs": 10, "optimizer": slower},
        )
        job = {"network": {"source": str(folders["original"])}, "data": DATA, "budget": {"macs": 0.25}}
        prune(PruneJob(**job, out=folders["pruned"], overwrite=True, recipe=recipe))
    return folders


def table(rows: Sequence[Row]) -> Table:
    """Show accuracy, bytes and latency, a row for each network or file."""
    lines = [
        (row.network, f"{row.top1:.2%}", f"{row.file_bytes:,}", f"{row.latency_ms:.3f} ms") for row in rows
    ]
    return Table(("network or file", "accuracy", "bytes", "latency"), lines)
