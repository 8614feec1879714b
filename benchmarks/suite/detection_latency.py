"""Detectors: mAP at half of the measured time.

YOLO trained from random weights on BCCD, as in `detection`, is cut so that one image takes half the time on
one thread of the CPU in PyTorch, and fine-tuned for a fifth of the epochs. The budget is checked by measuring
both networks alternately; the same two are measured in ONNX Runtime as well. Boxes are decoded in neither.
mAP is measured on the test images, which nothing else uses; epochs are chosen on the validation images.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secateur as sec
from benchmarks.benchmark import Row as BaseRow
from benchmarks.suite import detection
from benchmarks.tables import Table, spread
from secateur.detection.data import calibration_batches
from secateur.detection.raw_outputs import DetectorLoss, bare_copy, with_raw_outputs, without_raw_outputs
from secateur.detection.tuning import DetectorTuner
from secateur.export import export
from secateur.latency import Latency, interleaved_timing
from secateur.recipes import LatencyOptions, Recipe, Training
from secateur.runtimes import open_exported, prepare
from secateur.training.random_state import seeded

HALF = 0.5
STAGES = ("trained", "cut", "fine-tuned")


class Options(detection.Options):
    """Options.

    Attributes:
        runs: least number of timed runs.
        seconds: least time for each.
    """

    runs: int = 15
    seconds: float = 2.0


class Row(BaseRow):
    """mAP and times of one network at a stage; the times of one image are in milliseconds."""

    network: str
    seed: int
    stage: str
    macs: int
    eager_ms: float
    onnx_ms: float
    map50: float
    map: float


CASES: Mapping[str, Mapping[str, Any]] = {
    "bccd-320": {"seeds": (0,), "networks": ("yolov8n",), **detection.LARGER},
}
QUICK: Mapping[str, Any] = {
    "networks": ("yolov8n",),
    "image_size": 320,
    "epochs": 1,
    "finetune": 1.0,
    "calibration": 16,
    "runs": 3,
    "seconds": 0.1,
}


def run(options: Options) -> Iterator[Row]:
    """Train, cut to half the time, fine-tune and measure."""
    for name, seed, tuner in detection.tuners(options):
        if not options.measured(network=name, seed=seed):
            yield from _network(name, seed, tuner, options)


def _network(name: str, seed: int, tuner: DetectorTuner, options: Options) -> Iterator[Row]:
    """Cut and fine-tune one network."""
    whole, _ = detection.trained(name, tuner, options.epochs)
    with seeded(seed):
        cut = _at_half_the_time(whole, tuner)
    tuned = bare_copy(cut)
    tuner.train(tuned, max(1, round(options.finetune * options.epochs)), tuner.validate(tuned))
    networks = dict(zip(STAGES, (whole, cut, tuned), strict=True))
    times = _times({"trained": whole, "cut": cut}, options)
    x = _image(options)
    for stage, network in networks.items():
        found = tuner.validate(network, "test")
        eager, onnx = (times[runtime, "trained" if stage == "trained" else "cut"] for runtime in RUNTIMES)
        yield Row(
            network=name,
            seed=seed,
            stage=stage,
            macs=sec.cost(with_raw_outputs(network), x).macs,
            eager_ms=eager,
            onnx_ms=onnx,
            map50=found["metrics/mAP50(B)"],
            map=found["metrics/mAP50-95(B)"],
        )


def _at_half_the_time(network: nn.Module, tuner: DetectorTuner) -> nn.Module:
    """Cut a copy so that one image takes half the time, and reconstruct it."""
    trainer = tuner.trainer(network, 1, "data")
    raw: Any = with_raw_outputs(network).eval()
    raw.args = trainer.args
    batches = calibration_batches(trainer, tuner.settings.calibration_images)
    inputs, _ = next(iter(batches))
    training = Training(batches, latency=LatencyOptions(inputs=inputs[:1]))
    recipe, loss = Recipe(finetune={"epochs": 0}), DetectorLoss(raw)
    found = sec.prune(
        raw, inputs[:2], sec.Budget(latency=HALF), batches=training, loss_fn=loss, recipe=recipe
    )
    return without_raw_outputs(found.model)


RUNTIMES = ("eager", "onnxruntime")


def _times(networks: Mapping[str, nn.Module], options: Options) -> dict[tuple[str, str], float]:
    """Measure the median time of one image in each runtime, all in alternation."""
    x, runs = _image(options), {}
    with tempfile.TemporaryDirectory() as folder:
        for stage, network in networks.items():
            raw, file = with_raw_outputs(network).eval(), Path(folder) / f"{stage}.onnx"
            export(file, raw, x)
            runs["eager", stage] = partial(prepare("eager", raw), x)
            runs["onnxruntime", stage] = partial(open_exported(file), x)
        turns = interleaved_timing(
            runs,
            {(runtime, stage): (runtime, STAGES[0]) for runtime, stage in runs},
            warmup=3,
            min_runs=options.runs,
            min_seconds=options.seconds,
        )
    threads = torch.get_num_threads()
    return {
        key: Latency.of(found, threads=threads, device="cpu", batch=1).median_ms
        for key, found in turns.times.items()
    }


def _image(options: Options) -> torch.Tensor:
    return torch.zeros(1, 3, options.image_size, options.image_size)


def table(rows: Sequence[Row]) -> Table:
    """Show times and mAP, a row for each network and stage."""
    lines = []
    for name, stage in dict.fromkeys((row.network, row.stage) for row in rows):
        same = [row for row in rows if (row.network, row.stage) == (name, stage)]
        lines.append(
            (
                name,
                stage,
                spread([row.eager_ms for row in same]),
                spread([row.onnx_ms for row in same]),
                spread([row.macs / 1e6 for row in same]),
                spread([100 * row.map50 for row in same]),
                spread([100 * row.map for row in same]),
            )
        )
    return Table(
        ("network", "stage", "PyTorch, ms", "ONNX Runtime, ms", "million MACs", "mAP50", "mAP50-95"), lines
    )
