"""Define the command ``secateur inspect``."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from secateur.cli import options
from secateur.cli.amounts import limits, shape
from secateur.cli.job_settings import checked_by_options, network_choice


def inspect(
    network: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT|MODEL", help="The network to inspect.")],
    input: Annotated[  # noqa: A002  the option's name
        str | None,
        typer.Option(
            "--input", metavar="C,H,W", help="Shape of one example, such as 3,224,224; the length of a text."
        ),
    ] = None,
    classes: Annotated[int | None, typer.Option(min=1, help="Outputs of a MODEL.")] = None,
    ignore: options.Ignore = None,
    attention: Annotated[
        Literal["heads", "query_heads", "head_dim"] | None,
        typer.Option(
            help="What is removed from attention.", show_default="the first of these that can be removed"
        ),
    ] = None,
    whole: Annotated[bool, typer.Option("--all", help="Show every layer, not only the costliest.")] = False,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LIMITS",
            help="Show the costs of a plan by weight magnitude for this budget: macs=0.5, or "
            "params=1M,latency=12ms; may be given several times.",
        ),
    ] = None,
    latency: Annotated[
        bool, typer.Option("--latency", help="Measure the network's operators on this device too.")
    ] = False,
    batch: options.Batch = 1,
    builder: options.Builder = None,
    trusted: options.Trusted = False,
    json: options.Json = False,
) -> None:
    """Show coupled channels, what is frozen and why, what layers cost, and what is reachable.

    Examples:
      secateur inspect torchvision:resnet18
      secateur inspect torchvision:resnet18 --budget macs=0.5,params=0.5
      secateur inspect torchvision:resnet18 --budget latency=12ms
      secateur inspect mobilenet_v2 --input 3,96,96 --json
      secateur inspect hf:models/bert --input 128
      secateur inspect hf:models/llama --attention query_heads
      secateur inspect best.pt --trusted --input 3,320,320
    """
    from secateur.budget import Budget
    from secateur.jobs.settings import is_checkpoint

    size = shape(input) if input else None
    asked = limits(budget) if budget else None
    if asked:
        checked_by_options({name: (f"--budget {name}=", value) for name, value in asked.items()}, Budget)
    # Couplings do not depend on the weights, so no weights are fetched.
    weights = None if is_checkpoint(network) else "none"
    choice = network_choice(network, weights=weights, classes=classes, builder=builder, trusted=trusted)

    from secateur.cli.console import Reporter
    from secateur.cli.structure import structure
    from secateur.jobs.inspect import inspect as work

    with Reporter(as_json=json) as reporter:
        found = work(
            choice,
            size,
            ignore or (),
            attention=attention,
            limits=asked,
            latency=latency,
            batch=batch,
            callbacks=[reporter],
        )
        reporter.finish(structure(found, whole=whole), found)
