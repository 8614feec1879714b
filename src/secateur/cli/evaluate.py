"""``secateur evaluate``."""

from __future__ import annotations

from typing import Annotated

import typer

from secateur.cli import options
from secateur.cli.choices import data_choice, device_choice, network_choice
from secateur.cli.job_settings import text_table
from secateur.cli.processes import is_main, run_in_processes


def evaluate(
    checkpoint: Annotated[
        str, typer.Argument(metavar="RUN|CHECKPOINT|MODEL", help="The network; of a run, its best.")
    ],
    data: options.Data,
    weights: options.Weights = None,
    model: options.Builder = None,
    size: options.Size = None,
    batch_size: options.BatchSize = None,
    strict: options.Strict = False,
    sets: options.TextSet = None,
    device: options.Device = "auto",
    devices: options.Devices = None,
    precision: options.Precision = "float32",
    json: options.Json = False,
) -> None:
    """Evaluate a network on the test images of a folder, or a language model on a text.

    Examples:
      secateur evaluate runs/digits --data digits
      secateur evaluate runs/digits-small/checkpoints/best.safetensors --data digits --json
      secateur evaluate hf:models/smol --data text.txt --set data.text.block=512
    """
    network = network_choice(checkpoint, weights=weights, builder=model, size=size)
    chosen = data_choice(data, batch_size, strict, text_table(sets or ()))
    where = device_choice(device, precision, devices)
    run_in_processes(devices)

    from secateur.cli.console import Reporter
    from secateur.cli.tables import protocol_line
    from secateur.jobs.evaluate import evaluate as work
    from secateur.training.metrics import kind_in

    with Reporter(as_json=json, quiet=not is_main()) as reporter:
        found = work(network, chosen, where, [reporter])
        metric = kind_in(found)
        line = f"{found['model']}: {metric.name} {metric.show(found[metric.key])}, loss {found['loss']:.4f}"
        reporter.finish(f"{line} over {found['examples']:,} {metric.unit}", found)
        if "protocol" in found:
            reporter.tell(protocol_line(found["protocol"], found["error"]))
