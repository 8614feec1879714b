"""Define the command ``secateur oracle``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli import options
from secateur.cli.job_settings import (
    CRITERIA,
    data_choice,
    device_choice,
    is_own_code,
    network_choice,
)
from secateur.cli.processes import is_main, run_in_processes


def oracle(
    network: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT", help="The trained network.")],
    data: options.Data,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="JSON file for the changes; those that it contains are not measured again."
        ),
    ],
    criteria: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="Criteria to compare; those of the paper if not given."),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="HTML page for figures of the result; it needs no connection."),
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="Training images to use.")] = 256,
    weights: options.Weights = None,
    builder: options.Builder = None,
    size: options.Size = None,
    batch_size: options.BatchSize = None,
    strict: options.Strict = False,
    devices: options.Devices = None,
    json: options.Json = False,
) -> None:
    """Measure how the loss changes when each channel is masked, and which criterion predicts that best.

    This is by far the slowest command: it runs one forward pass for each channel, from the first layer that
    the channel affects. It can be interrupted; the same command continues.

    Examples:
      secateur oracle runs/digits --data digits --out digits-oracle.json --page digits-oracle.html
      secateur oracle runs/resnet18 --data images --examples 128 --criteria taylor,obd --out oracle.json
    """
    from secateur.errors import UsageError, closest_or_all

    names = [name.strip() for name in criteria.split(",")] if criteria else []
    choice = network_choice(network, weights=weights, builder=builder, size=size)
    for name in names:
        if name not in CRITERIA and not is_own_code(choice.model_dump()):
            raise UsageError(f"--criteria {name}: unknown{closest_or_all(name, CRITERIA)}")
    if page is not None and not page.absolute().parent.is_dir():
        raise UsageError(f"--page {page}: there is no folder {page.parent}")
    images = data_choice(data, batch_size, strict)
    processes = device_choice("cpu", "auto", devices)
    run_in_processes(devices)

    from secateur.cli.console import Reporter
    from secateur.cli.tables import agreements
    from secateur.files import write_text
    from secateur.jobs.oracle import PAPER_CRITERIA
    from secateur.jobs.oracle import oracle as work
    from secateur.report import agreement_page

    with Reporter(as_json=json, quiet=not is_main()) as reporter:
        found = work(choice, images, out, names or PAPER_CRITERIA, examples, [reporter], processes)
        if page is not None and is_main():
            write_text(page, agreement_page(found))
        reporter.finish(agreements(found["agreement"]), found)
        reporter.tell(f"{sum(map(len, found['changes'].values())):,} channels in {out}")
