"""Define the command ``secateur export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli import options
from secateur.cli.job_settings import checked_by_options, data_choice, network_choice


def export(
    checkpoint: Annotated[
        str, typer.Argument(metavar="RUN|CHECKPOINT|MODEL", help="The network; of a run, its best.")
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="File to write; an earlier one is replaced.")
    ],
    format: Annotated[  # noqa: A002  # the name of the option
        str | None,
        typer.Option(
            "--format",
            help="onnx, pt2, or hf (a folder for transformers); by the ending of FILE if not given.",
        ),
    ] = None,
    weights_as: Annotated[
        str,
        typer.Option(
            "--weights-as",
            help="How the file stores weights: float32, float16 or bfloat16 (half the bytes), or int8 "
            "(quantised by the runtime's own tools; needs --data).",
        ),
    ] = "float32",
    data: options.OptionalData = None,
    weights: options.Weights = None,
    builder: options.Builder = None,
    size: options.Size = None,
    batch_size: options.BatchSize = None,
    strict: options.Strict = False,
    seconds: Annotated[float, typer.Option(min=0, help="Measuring time for each network.")] = 1.0,
    json: options.Json = False,
) -> None:
    """Write a network for ONNX Runtime, for PyTorch without Secateur, or for transformers.

    The file takes any batch size and describes how images must be prepared. It is read back, run in its
    runtime and compared with the network; if the results differ, no file is written. With --format hf it is a
    folder for from_pretrained, with the tokenizer.

    Examples:
      secateur export runs/digits-small --format onnx --out small.onnx
      secateur export runs/digits-small --out small.pt2
      secateur export runs/digits-small --out small-int8.onnx --weights-as int8 --data digits
      secateur export runs/smol-80 --format hf --out models/smol-80
    """
    from secateur.jobs.settings import ExportChoice

    network = network_choice(checkpoint, weights=weights, builder=builder, size=size)
    options = {
        "out": ("--out", out),
        "format": ("--format", format),
        "weights_as": ("--weights-as", weights_as),
    }
    wanted = checked_by_options(options, ExportChoice)
    images = data_choice(data, batch_size, strict) if data else None

    from secateur.cli.console import Reporter
    from secateur.cli.tables import brief, conditions_line, side_by_side
    from secateur.jobs.export import export as work

    if wanted.format == "hf":
        from secateur.jobs.pretrained import export_folder

        with Reporter(as_json=json) as reporter:
            folder = export_folder(network, wanted.out)
            beside = " and its tokenizer" if folder["tokenizer"] else ""
            reporter.finish(f"{folder['folder']}: {folder['model']}{beside}, for from_pretrained", folder)
        return
    with Reporter(as_json=json) as reporter:
        found = work(network, wanted, images, seconds=seconds, callbacks=[reporter])
        names = brief([str(row["name"]) for row in found["networks"]])
        rows = [(names[row["name"]], row) for row in found["networks"]]
        reporter.finish(side_by_side(rows), found)
        reporter.tell(conditions_line(found["latency"]))
