"""``secateur evaluate``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

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
    model: options.Builder = None,
    size: options.Size = None,
    batch_size: options.BatchSize = 32,
    strict: options.Strict = False,
    device: options.Device = "auto",
    devices: options.Devices = None,
    precision: options.Precision = "float32",
    trusted: options.Trusted = False,
    json: options.Json = False,
) -> None:
    """Evaluate a network on the test images of a folder; a detector on labelled boxes.

    Examples:
      secateur evaluate runs/digits --data digits
      secateur evaluate runs/digits-small/checkpoints/best.safetensors --data digits --json
      secateur evaluate best.pt --trusted --data data.yaml --size 320
    """
    network = network_choice(checkpoint, weights=weights, builder=model, size=size, trusted=trusted)
    images = data_choice(data, batch_size, strict)
    where = device_choice(device, precision, devices)
    run_in_processes(devices)

    from secateur.cli.console import Reporter
    from secateur.jobs.evaluate import evaluate as work

    with Reporter(as_json=json, quiet=not is_main()) as reporter:
        found = work(network, images, where, [reporter])
        reporter.finish(_line(found), found)


def _line(found: Mapping[str, Any]) -> str:
    """Format what was found for people."""
    from secateur.formats import percent

    if "examples" in found:
        line = f"{found['model']}: top-1 {percent(found['top1'])}, loss {found['loss']:.4f}"
        return f"{line} over {found['examples']:,} images"
    names = {"map50": "mAP50", "map": "mAP50-95", "top1": "top-1"}
    shown = ", ".join(f"{word} {percent(found[name])}" for name, word in names.items() if name in found)
    return f"{found['model']}: {shown} on the images of {found['split']}"
