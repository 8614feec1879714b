"""``secateur evaluate``."""

from __future__ import annotations

from typing import Annotated

import typer

from secateur.cli import options
from secateur.cli.processes import is_main, process_counts, run_in_processes


def evaluate(
    checkpoint: Annotated[
        str, typer.Argument(metavar="RUN|CHECKPOINT|MODEL", help="The network; of a run, its best.")
    ],
    data: options.Data,
    weights: options.Weights = None,
    model: options.Builder = None,
    size: options.Size = None,
    batch_size: options.BatchSize = 32,
    strict: options.Strict = False,
    device: options.Device = "auto",
    devices: options.Devices = None,
    precision: options.Precision = "float32",
    json: options.Json = False,
) -> None:
    """Judge a network on the test pictures of a folder.

    Examples:
      secateur evaluate runs/digits --data digits
      secateur evaluate runs/digits-small/checkpoints/best.safetensors --data digits --json
    """
    from secateur.cli.console import Reporter
    from secateur.formats import percent
    from secateur.jobs.evaluate import evaluate as work
    from secateur.jobs.settings import DataChoice, NetworkChoice
    from secateur.training.settings import DeviceSettings

    network = NetworkChoice(source=checkpoint, weights=weights, size=size, builder=model)
    pictures = DataChoice(source=data, batch_size=batch_size, strict=strict)
    machine = DeviceSettings(accelerator=device, precision=precision, **process_counts(devices))
    run_in_processes(devices)
    with Reporter(as_json=json, quiet=not is_main()) as reporter:
        found = work(network, pictures, machine, [reporter])
        line = f"{found['model']}: top-1 {percent(found['top1'])}, loss {found['loss']:.4f}"
        reporter.finish(f"{line} over {found['examples']:,} pictures", found)
