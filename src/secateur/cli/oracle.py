"""``secateur oracle``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli import options
from secateur.cli.processes import is_main, process_counts, run_in_processes


def oracle(
    network: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT", help="The trained network.")],
    data: options.Data,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="Where the changes go, as JSON; what it holds is not measured again."
        ),
    ],
    criteria: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="Criteria to compare; those of the paper if not given."),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to draw it too, as one HTML page that needs no network."),
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="Training pictures to look at.")] = 256,
    weights: options.Weights = None,
    model: options.Builder = None,
    size: options.Size = None,
    batch_size: options.BatchSize = 32,
    strict: options.Strict = False,
    devices: options.Devices = None,
    json: options.Json = False,
) -> None:
    """Mask every channel in turn, and see which criterion guesses best what that does to the loss.

    The slowest command by far: one forward pass for each channel, from the layer that feels it on. It can be
    interrupted; the same command goes on.

    Examples:
      secateur oracle runs/digits --data digits --out digits-oracle.json --page digits-oracle.html
      secateur oracle runs/resnet18 --data pictures --examples 128 --criteria taylor,obd --out oracle.json
    """
    from secateur.cli.console import Reporter
    from secateur.cli.tables import agreements
    from secateur.errors import UsageError
    from secateur.files import write_text
    from secateur.jobs.oracle import CRITERIA
    from secateur.jobs.oracle import oracle as work
    from secateur.jobs.settings import DataChoice, NetworkChoice
    from secateur.report import agreement_page
    from secateur.training.settings import DeviceSettings

    if page is not None and not page.absolute().parent.is_dir():
        raise UsageError(f"{page}: there is no folder {page.parent}")
    choice = NetworkChoice(source=network, weights=weights, size=size, builder=model)
    pictures = DataChoice(source=data, batch_size=batch_size, strict=strict)
    names = [name.strip() for name in criteria.split(",")] if criteria else CRITERIA
    processes = DeviceSettings(accelerator="cpu", **process_counts(devices))
    run_in_processes(devices)
    with Reporter(as_json=json, quiet=not is_main()) as reporter:
        found = work(choice, pictures, out, names, examples, [reporter], processes)
        if page is not None and is_main():
            write_text(page, agreement_page(found))
        reporter.finish(agreements(found["agreement"]), found)
        reporter.tell(f"{sum(map(len, found['changes'].values())):,} channels in {out}")
