"""Define the options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print only one JSON object on standard output.")]
Out = Annotated[Path, typer.Option("--out", metavar="RUN", help="Folder for all results.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --out.")]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Continue the interrupted run in --out; same options."),
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of all random numbers.")]
JobSeed = Annotated[
    int | None,
    typer.Option(min=0, max=2**32 - 1, help="Seed of all random numbers.", show_default="0"),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Change a setting, such as data.batch_size=64; may be given several times.",
    ),
]
TextSet = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Change how text is read, such as data.text.block=512; may be given several times.",
    ),
]
Builder = Annotated[
    str | None,
    typer.Option(
        "--builder",
        metavar="FILE:FUNCTION",
        help="The function that builds the checkpoint's network, if it is in your own file.",
    ),
]
Measured = Annotated[
    Path | None,
    typer.Option(
        "--measured",
        metavar="RUN",
        help="Use the scores and width curves of an earlier run on the same network.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="default|none|FILE",
        help="For a MODEL: published weights, none, or a file.",
        show_default="published ones, where there are any",
    ),
]
Trusted = Annotated[
    bool,
    typer.Option(
        "--trusted",
        "--trust",
        help="Open a .pt file of ultralytics: a pickle, which can run any code that it holds.",
    ),
]
MeasuredWeights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="default|none|FILE",
        help="For a MODEL: published weights, none, or a file.",
        show_default="those of a local folder, otherwise none",
    ),
]
Ignore = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore", metavar="MODULE", help="Leave this module as it is; may be given several times."
    ),
]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Examples in the forward pass that is timed.")]

_DATA = typer.Option(
    "--data",
    metavar="DIR",
    help="Folder with train/ and val/ or test/, each with a folder of images per class; or the word digits, "
    "for handwritten digits that need no download; for a language model a text file, JSON lines or a folder "
    "of them; for a detector its data.yaml, or a folder with VOC or COCO labels.",
)
Data = Annotated[str, _DATA]
OptionalData = Annotated[str | None, _DATA]
BatchSize = Annotated[
    int | None,
    typer.Option(min=1, help="Images, or blocks of text, in one step.", show_default="32 images, 4 blocks"),
]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="Refuse unreadable images instead of leaving them out."),
]
Size = Annotated[
    int | None,
    typer.Option(
        "--size",
        min=1,
        help="Side of the square images, in pixels; the network's own if not given.",
    ),
]

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
JobDevice = Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.", show_default="auto")]
Devices = Annotated[
    int | None,
    typer.Option(
        "--devices",
        min=1,
        help="Number of devices, or of processes on a CPU; under torchrun, the number that it starts.",
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        help="auto, float32 or bf16; auto takes bf16 if the device supports it in hardware.",
    ),
]
