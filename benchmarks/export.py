"""Exported networks, original and pruned: do the files agree with PyTorch, and does the gain stay?

Three parts, each a JSON line at a time, so that an interrupted run goes on where it was:

    python benchmarks/export.py files [NETWORK ...]    prunes, exports, reads back and compares
    python benchmarks/export.py latency [NETWORK ...]  original and pruned in turn in each runtime
    python benchmarks/export.py quantised              pruning and eight bits together, on digits
    python benchmarks/export.py table                  what there is so far, as Markdown

Weights are random, but normalisation statistics are those of the inputs: neither agreement nor time
depends on more. Half of the MACs are cut by magnitude, in steps of eight channels. Everything is under
``--out``. Times need a quiet machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secateur as sec
from secateur.export import export
from secateur.jobs.measure import measure
from secateur.jobs.prune import prune
from secateur.jobs.settings import Conditions, DataChoice, ExportChoice, NetworkChoice, PruneJob, TrainJob
from secateur.jobs.train import train
from secateur.latency import Latency, interleaved_timing
from secateur.models import ModelSpec
from secateur.recipes import Recipe
from secateur.runtimes import open_exported, prepare

NETWORKS = {
    "vgg16_bn": "torchvision:vgg16_bn",
    "resnet50": "torchvision:resnet50",
    "mobilenet_v2": "torchvision:mobilenet_v2",
    "squeezenet1_1": "torchvision:squeezenet1_1",
    "densenet121": "torchvision:densenet121",
    "vit_tiny": "timm:vit_tiny_patch16_224",
}
SHARE, BATCHES = 0.5, (1, 16)
SUFFIX = {"onnxruntime": ".onnx"}
VERSIONS = ("original", "pruned")
EIGHTS = Recipe.preset("one-shot", widths={"multiple_of": 8})


class Lines:
    """Results, one JSON object a line, each under the names that it is known by.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        text = self.path.read_text() if self.path.exists() else ""
        return (json.loads(line) for line in text.splitlines())

    def has(self, **names: object) -> bool:
        """Whether there is a result of these names."""
        return any(all(row.get(key) == value for key, value in names.items()) for row in self)

    def add(self, row: dict[str, Any]) -> None:
        """Writes a result down."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)


def original(name: str) -> tuple[nn.Module, ModelSpec]:
    """A network with random weights, whose normalisations have seen some inputs."""
    torch.manual_seed(0)
    spec = ModelSpec.parse(NETWORKS[name])
    model = spec.build()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, *spec.input.size))
    return model.eval(), spec


def files(name: str, folder: Path, lines: Lines) -> None:
    """Prunes a network, and writes it and the original for every runtime."""
    saved = {version: folder / f"{name}-{version}.safetensors" for version in VERSIONS}
    inputs = ModelSpec.parse(NETWORKS[name]).input.example(2)
    if not saved["pruned"].exists():
        model, spec = original(name)
        cut = sec.prune(model, inputs, sec.Budget(macs=SHARE), "magnitude", recipe=EIGHTS)
        sec.save(saved["original"], model, builder=spec)
        sec.save(saved["pruned"], cut.model, builder=spec)
    for version, checkpoint in saved.items():
        for runtime, suffix in SUFFIX.items():
            if lines.has(part="files", network=name, version=version, runtime=runtime):
                continue
            network, spec = sec.load(checkpoint), ModelSpec.parse(NETWORKS[name])
            done = export(folder / f"{name}-{version}{suffix}", network, inputs, pictures=spec.input)
            lines.add(
                {
                    "part": "files",
                    "network": name,
                    "version": version,
                    "runtime": runtime,
                    "max_error": done.check.max_error,
                    "batches": done.check.batches,
                    "file_bytes": done.bytes,
                    "params": done.card.params,
                    "macs": done.card.macs,
                }
            )


def latency(name: str, batch: int, folder: Path, lines: Lines, runs: int, seconds: float) -> None:
    """Original and pruned in every runtime, all in turn."""
    ready = {}
    for version in VERSIONS:
        ready["eager", version] = prepare("eager", sec.load(folder / f"{name}-{version}.safetensors"))
        for runtime, suffix in SUFFIX.items():
            ready[runtime, version] = open_exported(folder / f"{name}-{version}{suffix}")
    size = ModelSpec.parse(NETWORKS[name]).input.size
    inputs = torch.randn(batch, *size)
    places = {place: partial(runner, inputs) for place, runner in ready.items()}
    measured = interleaved_timing(
        places,
        {(runtime, version): (runtime, VERSIONS[0]) for runtime, version in places},
        warmup=1,
        min_runs=runs,
        min_seconds=seconds,
    )
    for (runtime, version), times in measured.times.items():
        time = Latency.of(times, threads=torch.get_num_threads(), device="cpu", batch=batch)
        lines.add(
            {
                "part": "latency",
                "network": name,
                "version": version,
                "runtime": runtime,
                "batch": batch,
                "threads": time.threads,
                "median_ms": time.median_ms,
                "low_ms": time.low_ms,
                "high_ms": time.high_ms,
                "runs": time.runs,
            }
        )


def quantised(folder: Path, lines: Lines, seconds: float) -> None:
    """A network for digits: whole and pruned, in float32 and in eight bits."""
    from secateur.jobs.export import export as export_job

    data = DataChoice(source="digits", batch_size=32)
    runs = {version: folder / f"digits-{version}" for version in VERSIONS}
    if not (runs["pruned"] / "summary.json").exists():
        optimizer = {"learning_rate": 0.05, "weight_decay": 5e-4}
        network = {"source": "secateur:digits", "weights": "none"}
        fit = {"epochs": 12, "optimizer": optimizer}
        train(TrainJob(network=network, data=data, out=runs["original"], overwrite=True, fit=fit))
        slower = {**optimizer, "learning_rate": 0.02}
        how = Recipe.preset(
            "default",
            steps=5,
            between={"optimizer": slower},
            finetune={"epochs": 10, "optimizer": slower},
        )
        job = {"network": {"source": str(runs["original"])}, "data": data, "budget": {"macs": 0.25}}
        prune(PruneJob(**job, out=runs["pruned"], overwrite=True, recipe=how))
    choices = []
    for version in VERSIONS:
        choices.append(NetworkChoice(source=str(runs[version])))
        for suffix in SUFFIX.values():
            for kept in ("float32", "int8"):
                file = folder / f"digits-{version}-{kept}{suffix}"
                if not file.exists():
                    wanted = ExportChoice(out=file, weights_as=kept)
                    export_job(NetworkChoice(source=str(runs[version])), wanted, data, seconds=0)
                choices.append(NetworkChoice(source=str(file)))
    found = measure(choices, data, conditions=Conditions(batches=(16,), seconds=seconds))
    for row in found["networks"]:
        lines.add({"part": "quantised", **row, "name": Path(row["name"]).name})


def table(lines: Lines) -> str:
    """All results as Markdown."""
    rows = list(lines)
    parts = [_agreement(rows), _latency(rows), _quantised(rows)]
    return "\n\n".join(part for part in parts if part)


def _agreement(rows: list[dict[str, Any]]) -> str:
    found = [row for row in rows if row["part"] == "files"]
    text = [
        "| network | version | parameters | MACs | ONNX Runtime |",
        "|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["network"] for row in found):
        for version in VERSIONS:
            pair = {r["runtime"]: r for r in found if (r["network"], r["version"]) == (name, version)}
            if pair.keys() == SUFFIX.keys():
                one = pair["onnxruntime"]
                errors = " | ".join(f"{pair[runtime]['max_error']:.1e}" for runtime in SUFFIX)
                size = f"{one['params'] / 1e6:.2f} M | {one['macs'] / 1e9:.3f} G"
                text.append(f"| {name} | {version} | {size} | {errors} |")
    return "\n".join(text) if found else ""


def _latency(rows: list[dict[str, Any]]) -> str:
    found = {
        (r["network"], r["batch"], r["runtime"], r["version"]): r for r in rows if r["part"] == "latency"
    }
    runtimes = ("eager", *SUFFIX)
    text = [f"| network | batch | {' | '.join(runtimes)} |", "|---|---|---|---|"]
    for name, batch in dict.fromkeys(key[:2] for key in found):
        cells = []
        for runtime in runtimes:
            before, after = (found[name, batch, runtime, version] for version in VERSIONS)
            spread = max(r["high_ms"] - r["low_ms"] for r in (before, after))
            gap = before["median_ms"] - after["median_ms"]
            gain = f"÷{before['median_ms'] / after['median_ms']:.2f}" if abs(gap) > spread else "noise"
            cells.append(f"{before['median_ms']:.1f} → {after['median_ms']:.1f} ms ({gain})")
        text.append(f"| {name} | {batch} | {' | '.join(cells)} |")
    return "\n".join(text) if found else ""


def _quantised(rows: list[dict[str, Any]]) -> str:
    found = {row["name"]: row for row in rows if row["part"] == "quantised"}
    text = ["| network or file | accuracy | bytes | latency, batch 16 |", "|---|---|---|---|"]
    for name, row in found.items():
        text.append(f"| {name} | {row['top1']:.2%} | {row['file_bytes']:,} | {row['latency_ms']:.3f} ms |")
    return "\n".join(text) if found else ""


def main() -> None:
    """Does what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=["files", "latency", "quantised", "table"])
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--out", type=Path, default=Path("runs/export"))
    parser.add_argument("--runs", type=int, default=7, help="least number of timed runs")
    parser.add_argument("--seconds", type=float, default=1.0, help="least time for each")
    options = parser.parse_args()
    lines = Lines(options.out / "results.jsonl")
    names = options.networks or list(NETWORKS)
    if options.part == "files":
        for name in names:
            files(name, options.out, lines)
    elif options.part == "latency":
        for name in names:
            for batch in BATCHES:
                if not lines.has(part="latency", network=name, batch=batch):
                    latency(name, batch, options.out, lines, options.runs, options.seconds)
    elif options.part == "quantised":
        if not lines.has(part="quantised"):
            quantised(options.out, lines, options.seconds)
    else:
        print(table(lines))


if __name__ == "__main__":
    main()
