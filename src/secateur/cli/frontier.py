"""Define the command ``secateur frontier``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli import options
from secateur.cli.job_settings import frontier_job
from secateur.cli.report import report_on


def frontier(
    network: Annotated[
        str, typer.Argument(metavar="RUN|CHECKPOINT|MODEL", help="The network whose trade-off is computed.")
    ],
    *,
    out: options.Out,
    data: options.Data,
    by: Annotated[
        str, typer.Option(metavar="macs|params|latency", help="The quantity that is limited.")
    ] = "macs",
    points: Annotated[int, typer.Option(help="Number of budgets.")] = 8,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.toml",
            help="How to score, plan and cut, as for prune; nothing is trained.",
            show_default="default",
        ),
    ] = None,
    sets: options.Set = None,
    measured: options.Measured = None,
    weights: options.Weights = None,
    builder: options.Builder = None,
    trusted: options.Trusted = False,
    device: options.JobDevice = None,
    seed: options.JobSeed = None,
    overwrite: options.Overwrite = False,
    resume: options.Resume = False,
    json: options.Json = False,
) -> None:
    """Show accuracy, perplexity or mAP against cost at several budgets, without training.

    For each budget a copy of the network is cut, verified, reconstructed and evaluated on the validation
    data. The damage of every width is measured once; it serves later budgets too. Point 1 is
    the largest network. `secateur prune --measured RUN --point N` prunes to one of them and fine-tunes.

    Examples:
      secateur frontier runs/big --data images --out runs/frontier
      secateur frontier runs/big --data images --by latency --points 5 --out runs/frontier
      secateur frontier best.pt --trusted --data data.yaml --out runs/frontier
      secateur prune runs/big --data images --measured runs/frontier --point 5 --out runs/small
    """
    job = frontier_job(
        {
            "network.source": ("RUN", network),
            "network.weights": ("--weights", weights),
            "network.builder": ("--builder", builder),
            "network.trusted": ("--trusted", trusted or None),
            "data.source": ("--data", data),
            "by": ("--by", by),
            "points": ("--points", points),
            "measured": ("--measured", measured),
            "device.accelerator": ("--device", device),
            "seed": ("--seed", seed),
            "out": ("--out", out),
            "overwrite": ("--overwrite", overwrite),
            "resume": ("--resume", resume),
        },
        recipe,
        sets or (),
    )

    from secateur.cli.console import Reporter
    from secateur.cli.tables import frontier_table
    from secateur.formats import count
    from secateur.jobs.frontier import frontier as work

    with Reporter(as_json=json) as reporter:
        summary = work(job, [reporter])
        reporter.finish(frontier_table(summary["frontier"], summary["evaluated_on"]), summary)
        for model in summary["frontier"]["smaller_models"]:
            cost = f"{count(model['macs'])} MACs, {count(model['params'])} parameters"
            reporter.tell(f"smaller network of the same family: {model['name']} ({cost})")
        report_on(Path(out), reporter)
