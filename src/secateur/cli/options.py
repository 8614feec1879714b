"""Options that several commands share, and what they amount to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_DATA, _TRAINING, _MACHINE = "Data", "Training", "Machine"

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output, and nothing else there.")
]
Out = Annotated[Path, typer.Option("--out", metavar="RUN", help="Folder for everything that comes of it.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --out.")]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on with the run in --out that was stopped or killed; same options."),
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Start of all random numbers.")]
Builder = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="FILE:FUNCTION",
        help="What builds the checkpoint's network, if a file of yours does.",
    ),
]
Weights = Annotated[
    str | None, typer.Option("--weights", metavar="default|none|FILE", help="For a MODEL: as for train.")
]
Ignore = Annotated[
    list[str] | None,
    typer.Option("--ignore", metavar="MODULE", help="Leave this module whole; may be given several times."),
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only", metavar="MODULE", help="Cut this group or module and no others; may be given several times."
    ),
]
TensorBoard = Annotated[
    bool, typer.Option("--tensorboard", help="Write RUN/tensorboard too, for TensorBoard to show.")
]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Examples in the forward pass that is timed.")]

Data = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Folder with train/ and val/ or test/, in each a folder of pictures per class; "
        "or the word digits, for handwritten digits that need no download.",
        rich_help_panel=_DATA,
    ),
]
OptionalData = Annotated[
    str | None,
    typer.Option("--data", metavar="DIR", help="As for train: a folder, or digits.", rich_help_panel=_DATA),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures in one step.", rich_help_panel=_DATA)]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict", help="Refuse unreadable pictures instead of leaving them out.", rich_help_panel=_DATA
    ),
]
Mixup = Annotated[
    float,
    typer.Option(
        metavar="ALPHA",
        min=0,
        help="Blend training pictures and their classes in pairs, in shares drawn from Beta(ALPHA, ALPHA).",
        rich_help_panel=_TRAINING,
    ),
]
Size = Annotated[
    int | None,
    typer.Option(
        "--size",
        min=1,
        help="Side of the square pictures, in pixels; the network's own if not given.",
        rich_help_panel=_DATA,
    ),
]

Optimizer = Annotated[str | None, typer.Option(help="sgd or adamw.", rich_help_panel=_TRAINING)]
LearningRate = Annotated[
    float | None, typer.Option("--lr", help="Base learning rate.", rich_help_panel=_TRAINING)
]
Momentum = Annotated[float | None, typer.Option(help="Of sgd.", rich_help_panel=_TRAINING)]
Nesterov = Annotated[
    bool | None,
    typer.Option("--nesterov/--no-nesterov", help="Let sgd look ahead.", rich_help_panel=_TRAINING),
]
WeightDecay = Annotated[
    float | None,
    typer.Option(help="On weights; biases and normalisations are left alone.", rich_help_panel=_TRAINING),
]
Schedule = Annotated[str, typer.Option(help="constant, cosine or one-cycle.", rich_help_panel=_TRAINING)]
Warmup = Annotated[
    float,
    typer.Option(help="Share of the steps that climb to the base learning rate.", rich_help_panel=_TRAINING),
]
LabelSmoothing = Annotated[
    float | None,
    typer.Option(help="Weight of the uniform distribution in the target.", rich_help_panel=_TRAINING),
]
ClipNorm = Annotated[
    float | None, typer.Option(help="Largest norm of the gradient.", rich_help_panel=_TRAINING)
]

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.", rich_help_panel=_MACHINE)]
Devices = Annotated[
    int | None,
    typer.Option(
        "--devices",
        min=1,
        help="How many devices share the work, or processes on a CPU; under torchrun as many as it starts.",
        rich_help_panel=_MACHINE,
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        help="auto, float32 or bf16; auto takes bf16 where the device has units for it.",
        rich_help_panel=_MACHINE,
    ),
]
ChannelsLast = Annotated[
    str,
    typer.Option(
        help="auto, yes or no: the memory layout with the channel innermost; auto where it gains.",
        rich_help_panel=_MACHINE,
    ),
]
