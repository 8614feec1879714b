"""Define the command ``secateur train``."""

from __future__ import annotations

from typing import Annotated

import typer

from secateur.cli import options
from secateur.cli.job_settings import train_job
from secateur.cli.processes import is_main, run_in_processes


def train(
    out: options.Out,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|RUN|CHECKPOINT",
            help="torchvision:NAME, secateur:NAME, timm:NAME, file.py:FUNCTION, or a trained network; "
            "required, unless --recipe is a run's config.toml.",
        ),
    ] = None,
    data: options.OptionalData = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="default|none|FILE",
            help="Weights to start from, for a MODEL: published ones, none, or a file.",
            show_default="published ones, where there are any",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.toml", help="A file of settings; or a run's config.toml, which repeats the run."
        ),
    ] = None,
    sets: options.Set = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the data.", show_default="by their number")
    ] = None,
    lr: Annotated[
        float | None, typer.Option("--lr", help="Peak learning rate.", show_default="found by short trials")
    ] = None,
    batch_size: options.BatchSize = None,
    size: options.Size = None,
    device: options.JobDevice = None,
    devices: options.Devices = None,
    seed: options.JobSeed = None,
    overwrite: options.Overwrite = False,
    resume: options.Resume = False,
    json: options.Json = False,
) -> None:
    """Train a network on a folder of images or a text, from published weights, a file, or random weights.

    The classifier is replaced by one for the folder's classes. The network that does best on the validation
    data is kept in RUN/checkpoints/best.safetensors and evaluated on the test data.

    Everything else is set with --set: `secateur recipe train` lists the names and their defaults.

    Examples:
      secateur train --model secateur:digits --data digits --out runs/digits
      secateur train --model resnet18 --data images --out runs/resnet18 --epochs 20
      secateur train --model vgg16 --weights none --data images --set fit.schedule=one-cycle --out runs/vgg16
      secateur train --recipe runs/digits/config.toml --seed 1 --out runs/digits-1
    """
    job = train_job(
        {
            "network.source": ("--model", model),
            "network.weights": ("--weights", weights),
            "network.size": ("--size", size),
            "data.source": ("--data", data),
            "data.batch_size": ("--batch-size", batch_size),
            "fit.epochs": ("--epochs", epochs),
            "fit.optimizer.learning_rate": ("--lr", lr),
            "device.accelerator": ("--device", device),
            "device.devices": ("--devices", devices),
            "seed": ("--seed", seed),
            "out": ("--out", out),
            "overwrite": ("--overwrite", overwrite),
            "resume": ("--resume", resume),
        },
        recipe,
        sets or (),
    )
    run_in_processes(job.device.devices)

    from secateur.cli.console import Reporter
    from secateur.cli.tables import figures_of_one
    from secateur.jobs.train import train as work

    with Reporter(as_json=json, quiet=not is_main()) as reporter:
        summary = work(job, [reporter])
        reporter.finish(figures_of_one(summary["network"]), summary)
