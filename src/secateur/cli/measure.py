"""``secateur measure``."""

from __future__ import annotations

from typing import Annotated

import typer

from secateur.cli import options


def measure(
    checkpoints: Annotated[
        list[str],
        typer.Argument(metavar="RUN|CHECKPOINT|MODEL...", help="Networks; the first is the yardstick."),
    ],
    data: options.OptionalData = None,
    weights: options.Weights = "none",
    model: options.Builder = None,
    size: options.Size = None,
    batch: options.Batch = 1,
    seconds: Annotated[float, typer.Option(min=0, help="Time spent on each network.")] = 2.0,
    batch_size: options.BatchSize = 32,
    strict: options.Strict = False,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Hold networks side by side: parameters, MACs, file size, milliseconds, and accuracy with --data.

    The networks are run in turn, so that a busy machine slows all of them alike.

    Examples:
      secateur measure runs/digits runs/digits-small --data digits
      secateur measure torchvision:resnet18 torchvision:resnet50 --batch 8
    """
    from secateur.cli.console import Reporter
    from secateur.cli.tables import conditions_line, side_by_side
    from secateur.jobs.measure import measure as work
    from secateur.jobs.networks import is_checkpoint
    from secateur.jobs.settings import DataChoice, NetworkChoice
    from secateur.training.settings import DeviceSettings

    networks = [
        NetworkChoice.checked(
            source=source,
            weights=None if is_checkpoint(source) else weights,
            size=size,
            builder=model if is_checkpoint(source) else None,
        )
        for source in checkpoints
    ]
    pictures = DataChoice.checked(source=data, batch_size=batch_size, strict=strict) if data else None
    machine = DeviceSettings.checked(accelerator=device)
    with Reporter(as_json=json) as reporter:
        found = work(networks, pictures, batch=batch, seconds=seconds, device=machine, listener=reporter)
        rows = [(str(row["name"]), row) for row in found["networks"]]
        reporter.finish(side_by_side(rows), found)
        reporter.tell(conditions_line(found["latency"]))
