"""``secateur train``."""

from __future__ import annotations

from typing import Annotated

import typer

from secateur.cli import options
from secateur.cli.processes import device_options, is_main, run_in_processes
from secateur.cli.typed import typed_line


def train(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="torchvision:resnet18, timm:resnet50, path/to/file.py:function, a bare torchvision name, "
            "or a run or checkpoint to train on.",
        ),
    ],
    data: options.Data,
    out: options.Out,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="default|none|FILE",
            help="Published weights, none, or a file; the published ones if there are any.",
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=0, help="Passes over the training pictures.")] = 10,
    size: options.Size = None,
    batch_size: options.BatchSize = 32,
    strict: options.Strict = False,
    optimizer: options.Optimizer = "sgd",
    lr: options.LearningRate = 0.01,
    momentum: options.Momentum = 0.9,
    nesterov: options.Nesterov = False,
    weight_decay: options.WeightDecay = 5e-4,
    schedule: options.Schedule = "cosine",
    warmup: options.Warmup = 0.0,
    label_smoothing: options.LabelSmoothing = 0.0,
    clip_norm: options.ClipNorm = None,
    mixup: options.Mixup = 0.0,
    patience: Annotated[
        int | None,
        typer.Option(
            metavar="EPOCHS",
            help="Stop after so many epochs without a better one.",
            rich_help_panel="Training",
        ),
    ] = None,
    device: options.Device = "auto",
    devices: options.Devices = None,
    precision: options.Precision = "auto",
    channels_last: options.ChannelsLast = "auto",
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    resume: options.Resume = False,
    tensorboard: options.TensorBoard = False,
    json: options.Json = False,
) -> None:
    """Train a network on a folder of pictures, from published weights, a file, or nothing.

    The classifier is replaced by one for the folder's classes. The best network on the validation pictures is
    kept in RUN/checkpoints/best.safetensors and evaluated on the test pictures.

    Examples:
      secateur train --model secateur:digits --data digits --out runs/digits
      secateur train --model resnet18 --data pictures --out runs/resnet18 --epochs 20
      secateur train --model vgg16 --weights none --size 96 --data pictures --out runs/vgg16
    """
    from secateur.cli.console import Reporter, job_callbacks
    from secateur.cli.tables import figures_of_one
    from secateur.jobs.settings import TrainJob
    from secateur.jobs.train import train as work

    job = TrainJob(
        network={"source": model, "weights": weights, "size": size},
        data={"source": data, "batch_size": batch_size, "strict": strict, "mixup": mixup},
        out=out,
        overwrite=overwrite,
        resume=resume,
        seed=seed,
        fit={
            "epochs": epochs,
            "schedule": schedule,
            "warmup": warmup,
            "label_smoothing": label_smoothing,
            "clip_norm": clip_norm or 0.0,
            "patience": patience,
            "optimizer": {
                "name": optimizer,
                "learning_rate": lr,
                "momentum": momentum,
                "nesterov": nesterov,
                "weight_decay": weight_decay,
            },
        },
        device=device_options(device, devices, precision, channels_last),
        typed=typed_line(),
    )
    run_in_processes(devices)
    with Reporter(as_json=json, quiet=not is_main()) as reporter:
        with job_callbacks(out, reporter, tensorboard=tensorboard and is_main()) as callbacks:
            summary = work(job, callbacks)
        reporter.finish(figures_of_one(summary["network"]), summary)
