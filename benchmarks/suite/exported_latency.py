"""Latency of pruned networks in PyTorch and in ONNX Runtime.

Original and pruned run in alternation in each runtime; cells are medians. Half the MACs are cut by magnitude
over all groups, in steps of eight channels; random weights, so the times say nothing of accuracy. A gain
within the spread of the times is called noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import secateur as sec
from benchmarks import benchmark
from benchmarks.exported import NETWORKS, VERSIONS, checkpoints
from benchmarks.tables import Table
from secateur.export import Description, export
from secateur.latency import Latency, interleaved_timing
from secateur.models import ModelSpec
from secateur.runtimes import open_exported, prepare

RUNTIMES = {"eager": "PyTorch, eager", "onnxruntime": "ONNX Runtime"}


class Options(benchmark.Options):
    """Options.

    Attributes:
        networks: by their short names.
        work: folder of checkpoints and exported files.
        batches: examples in a forward pass.
        runs: least number of timed runs.
        seconds: least time for each.
    """

    networks: tuple[str, ...] = tuple(NETWORKS)
    work: Path = Path("runs/benchmarks/exported")
    batches: tuple[int, ...] = (1, 16)
    runs: int = 7
    seconds: float = 1.0


class Row(benchmark.Row):
    """One network, version, runtime and number of examples; low and high enclose most of the times."""

    network: str
    version: str
    runtime: str
    batch: int
    median_ms: float
    low_ms: float
    high_ms: float


CASES: Mapping[str, Mapping[str, Any]] = {}
QUICK: Mapping[str, Any] = {"networks": ("squeezenet1_1",), "batches": (1,), "runs": 3, "seconds": 0.1}


def run(options: Options) -> Iterator[Row]:
    """Prune and export what is missing, and measure."""
    for name in options.networks:
        files = checkpoints(name, options.work)
        spec = ModelSpec.parse(NETWORKS[name])
        for checkpoint in files.values():
            if not checkpoint.with_suffix(".onnx").exists():
                example = spec.input.example(2)
                about = Description(spec.input)
                export(checkpoint.with_suffix(".onnx"), sec.load(checkpoint), example, description=about)
        for batch in options.batches:
            if not options.measured(network=name, batch=batch):
                yield from measured(name, files, batch, options)


def measured(name: str, files: Mapping[str, Path], batch: int, options: Options) -> Iterator[Row]:
    """Measure original and pruned in every runtime, all in alternation."""
    inputs = torch.randn(batch, *ModelSpec.parse(NETWORKS[name]).input.size)
    runs = {}
    for version, checkpoint in files.items():
        runs["eager", version] = partial(prepare("eager", sec.load(checkpoint)), inputs)
        runs["onnxruntime", version] = partial(open_exported(checkpoint.with_suffix(".onnx")), inputs)
    turns = interleaved_timing(
        runs,
        {(runtime, version): (runtime, VERSIONS[0]) for runtime, version in runs},
        warmup=1,
        min_runs=options.runs,
        min_seconds=options.seconds,
    )
    for (runtime, version), times in turns.times.items():
        time = Latency.of(times, threads=torch.get_num_threads(), device="cpu", batch=batch)
        yield Row(
            network=name,
            version=version,
            runtime=runtime,
            batch=batch,
            median_ms=time.median_ms,
            low_ms=time.low_ms,
            high_ms=time.high_ms,
        )


def table(rows: Sequence[Row]) -> Table:
    """Show medians before and after, a row for each network and number of examples."""
    lines = []
    for name, batch in dict.fromkeys((row.network, row.batch) for row in rows):
        cells = []
        for runtime in RUNTIMES:
            found = {
                row.version: row
                for row in rows
                if (row.network, row.batch, row.runtime) == (name, batch, runtime)
            }
            before, after = (found[version] for version in VERSIONS)
            spread = max(row.high_ms - row.low_ms for row in (before, after))
            gap = before.median_ms - after.median_ms
            gain = f"÷{before.median_ms / after.median_ms:.2f}" if abs(gap) > spread else "noise"
            cells.append(f"{before.median_ms:.1f} → {after.median_ms:.1f} ms ({gain})")
        lines.append((name, str(batch), *cells))
    return Table(("network", "batch", *RUNTIMES.values()), lines)
