"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else there.")
]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Folder with train/ and val/ (or test/), each with one folder of pictures per class; "
        "or the word digits for handwritten digits that need no download.",
    ),
]
OptionalData = Annotated[
    str | None,
    typer.Option("--data", metavar="DIR", help="Folder of pictures as for train, or the word digits."),
]
Out = Annotated[
    Path, typer.Option("--out", metavar="RUN", help="Folder for everything that comes of the run.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --out.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Start of all random numbers.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Examples in one step.")]
Workers = Annotated[
    int | None, typer.Option(min=0, help="Processes that read pictures; as many as pay, if not given.")
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse unreadable pictures instead of skipping them.")
]
Size = Annotated[
    int | None,
    typer.Option(
        "--size", min=1, help="Side of the square pictures in pixels; the network's own if not given."
    ),
]
Input = Annotated[
    str | None,
    typer.Option("--input", metavar="C,H,W", help="Shape of one example, such as 3,224,224."),
]
Classes = Annotated[int | None, typer.Option(min=1, help="Number of classes of a network built anew.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Precision = Annotated[
    str, typer.Option(help="auto, float32 or bf16; auto takes bf16 where the device has units for it.")
]
ChannelsLast = Annotated[
    str, typer.Option(help="auto, yes or no: memory layout with the channel innermost; auto where it gains.")
]
Optimizer = Annotated[str, typer.Option(help="sgd or adamw.")]
LearningRate = Annotated[float, typer.Option("--lr", help="Base learning rate.")]
Momentum = Annotated[float, typer.Option(help="Momentum of sgd.")]
WeightDecay = Annotated[float, typer.Option(help="Decay of weights, not of biases and normalisations.")]
Schedule = Annotated[str, typer.Option(help="constant, cosine or one-cycle.")]
Warmup = Annotated[float, typer.Option(help="Share of the steps that climb to the base learning rate.")]
LabelSmoothing = Annotated[float, typer.Option(help="Weight of the uniform distribution in the target.")]
ClipNorm = Annotated[float | None, typer.Option(help="Largest norm of the gradient.")]
