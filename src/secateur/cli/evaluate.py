"""Define the command ``secateur evaluate``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from secateur.cli import options
from secateur.cli.job_settings import data_choice, device_choice, network_choice
from secateur.cli.processes import is_main, run_in_processes


def evaluate(
    checkpoint: Annotated[
        str, typer.Argument(metavar="RUN|CHECKPOINT|MODEL", help="The network; of a run, its best.")
    ],
    data: options.Data,
    weights: options.Weights = None,
    builder: options.Builder = None,
    size: options.Size = None,
    batch_size: options.BatchSize = None,
    strict: options.Strict = False,
    sets: options.TextSet = None,
    device: options.Device = "auto",
    devices: options.Devices = None,
    precision: options.Precision = "float32",
    trusted: options.Trusted = False,
    json: options.Json = False,
) -> None:
    """Evaluate a network on the test images of a folder, a language model on a text, a detector on boxes.

    Examples:
      secateur evaluate runs/digits --data digits
      secateur evaluate runs/digits-small/checkpoints/best.safetensors --data digits --json
      secateur evaluate hf:models/smol --data text.txt --set data.text.block=512
      secateur evaluate best.pt --trusted --data data.yaml --size 320
    """
    network = network_choice(checkpoint, weights=weights, builder=builder, size=size, trusted=trusted)
    chosen = data_choice(data, batch_size, strict, sets)
    where = device_choice(device, precision, devices)
    run_in_processes(devices)

    from secateur.cli.console import Reporter
    from secateur.cli.tables import protocol_line
    from secateur.jobs.evaluate import evaluate as work

    with Reporter(as_json=json, quiet=not is_main()) as reporter:
        found = work(network, chosen, where, [reporter])
        reporter.finish(_line(found), found)
        if "protocol" in found:
            reporter.tell(protocol_line(found["protocol"], found["error"]))


def _line(found: Mapping[str, Any]) -> str:
    """Format what was found for people."""
    from secateur.training.metrics import kinds_in

    shown = ", ".join(f"{kind.name} {kind.show(found[kind.key])}" for kind in kinds_in(found))
    if "examples" in found:
        unit = kinds_in(found)[0].unit
        return f"{found['model']}: {shown}, loss {found['loss']:.4f} over {found['examples']:,} {unit}"
    return f"{found['model']}: {shown} on the images of {found['split']}"
