"""Agreement of exported files with PyTorch.

Original and pruned networks are written as ONNX files, read back and run in ONNX Runtime with batches of
several sizes; the cell is the largest relative difference from PyTorch. Half the MACs are cut by magnitude
over all groups, in steps of eight channels; random weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import secateur as sec
from benchmarks import benchmark
from benchmarks.exported import NETWORKS, VERSIONS, checkpoints
from benchmarks.tables import Table
from secateur.export import Description, export
from secateur.models import ModelSpec


class Options(benchmark.Options):
    """Options.

    Attributes:
        networks: by their short names.
        work: folder of checkpoints and exported files.
    """

    networks: tuple[str, ...] = tuple(NETWORKS)
    work: Path = Path("runs/benchmarks/exported")


class Row(benchmark.Row):
    """One network and version."""

    network: str
    version: str
    params: int
    macs: int
    file_bytes: int
    max_error: float


CASES: Mapping[str, Mapping[str, Any]] = {}
QUICK: Mapping[str, Any] = {"networks": ("squeezenet1_1",)}


def run(options: Options) -> Iterator[Row]:
    """Prune, export and compare."""
    for name in options.networks:
        for version, checkpoint in checkpoints(name, options.work).items():
            if options.measured(network=name, version=version):
                continue
            network, spec = sec.load(checkpoint), ModelSpec.parse(NETWORKS[name])
            file = checkpoint.with_suffix(".onnx")
            inputs = spec.input.example(2)
            cost = sec.cost(network, inputs)
            done = export(file, network, inputs, description=Description(spec.input))
            yield Row(
                network=name,
                version=version,
                params=cost.params,
                macs=cost.macs,
                file_bytes=done.bytes,
                max_error=done.check.max_error,
            )


def table(rows: Sequence[Row]) -> Table:
    """Show sizes and differences, original / pruned, a row for each network."""
    lines = []
    for name in dict.fromkeys(row.network for row in rows):
        found = {row.version: row for row in rows if row.network == name}
        pair = [found[version] for version in VERSIONS if version in found]
        cells = (
            [f"{row.params / 1e6:.2f} M" for row in pair],
            [f"{row.macs / 1e9:.3f} G" for row in pair],
            [f"{row.max_error:.1e}" for row in pair],
        )
        lines.append((name, *(" / ".join(cell) for cell in cells)))
    return Table(("network", "parameters", "MACs", "ONNX Runtime"), lines)
