"""Define the command ``secateur predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli import options
from secateur.cli.job_settings import device_choice, network_choice


def predict(
    checkpoint: Annotated[
        str, typer.Argument(metavar="RUN|CHECKPOINT|MODEL", help="The network; of a run, its best.")
    ],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Files to classify.")],
    top: Annotated[int, typer.Option(min=1, help="Classes to name for each image.")] = 5,
    weights: options.Weights = None,
    builder: options.Builder = None,
    size: options.Size = None,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Classify images: the most probable classes and their probabilities.

    Images are prepared as in training and evaluation. Files that cannot be read are reported; then the exit
    code is 1.

    Examples:
      secateur predict runs/digits-small seven.png
      secateur predict runs/resnet18 cat.jpg dog.jpg --top 1 --json
    """
    network = network_choice(checkpoint, weights=weights, builder=builder, size=size)
    where = device_choice(device)

    from secateur.cli.console import Reporter
    from secateur.cli.tables import prediction_table
    from secateur.jobs.predict import predict as work

    with Reporter(as_json=json) as reporter:
        found = work(network, images, top, where, [reporter])
        reporter.finish(prediction_table(found["predictions"]), found)
    for failure in found["failed"]:
        typer.echo(f"error: {failure['image']}: {failure['reason']}", err=True)
    if found["failed"]:
        raise typer.Exit(1)
