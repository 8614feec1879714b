"""``secateur evaluate``."""

from __future__ import annotations

from typing import Annotated

import typer

from secateur.cli import options
from secateur.cli.choices import data_choice, device_choice, network_choice
from secateur.cli.processes import is_main, run_in_processes


def evaluate(
    checkpoint: Annotated[
        str, typer.Argument(metavar="RUN|CHECKPOINT|MODEL", help="The network; of a run, its best.")
    ],
    data: options.Data,
    weights: options.Weights = None,
    builder: options.Builder = None,
    size: options.Size = None,
    batch_size: options.BatchSize = 32,
    strict: options.Strict = False,
    device: options.Device = "auto",
    devices: options.Devices = None,
    precision: options.Precision = "float32",
    json: options.Json = False,
) -> None:
    """Evaluate a network on the test images of a folder.

    Examples:
      secateur evaluate runs/digits --data digits
      secateur evaluate runs/digits-small/checkpoints/best.safetensors --data digits --json
    """
    network = network_choice(checkpoint, weights=weights, builder=builder, size=size)
    images = data_choice(data, batch_size, strict)
    where = device_choice(device, precision, devices)
    run_in_processes(devices)

    from secateur.cli.console import Reporter
    from secateur.formats import percent
    from secateur.jobs.evaluate import evaluate as work

    with Reporter(as_json=json, quiet=not is_main()) as reporter:
        found = work(network, images, where, [reporter])
        line = f"{found['model']}: top-1 {percent(found['top1'])}, loss {found['loss']:.4f}"
        reporter.finish(f"{line} over {found['examples']:,} images", found)
