"""Define the command ``secateur measure``."""

from __future__ import annotations

from typing import Annotated

import typer

from secateur.cli import options
from secateur.cli.job_settings import checked_by_options, data_choice, device_choice, network_choice


def measure(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|CHECKPOINT|MODEL|EXPORTED...",
            help="Networks, and exported files (.onnx, .pt2); the others are compared with the first.",
        ),
    ],
    data: options.OptionalData = None,
    weights: options.MeasuredWeights = None,
    builder: options.Builder = None,
    size: options.Size = None,
    batch: Annotated[
        list[int] | None,
        typer.Option("--batch", help="Examples in the forward pass; 1, or several times for several."),
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option("--threads", help="Of the CPU; may be given several times.")
    ] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            "--runtime",
            help="eager (as it is), channels-last, compile, bf16 or onnxruntime; may be given several times. "
            "An exported file runs in its own runtime.",
        ),
    ] = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Measure peak memory too, in a process for each network.")
    ] = False,
    prompt: Annotated[
        int | None,
        typer.Option("--prompt", min=1, help="Tokens that language models read.", show_default="256"),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, help="Measuring time for each network.")] = 2.0,
    batch_size: options.BatchSize = None,
    strict: options.Strict = False,
    sets: options.TextSet = None,
    trusted: Annotated[
        bool,
        typer.Option(
            "--trusted",
            "--trust",
            help="Open .pt2 files, and .pt files of ultralytics: they are unpickled, which can run any code.",
        ),
    ] = False,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Compare networks: parameters, MACs, file size, milliseconds, and accuracy with --data.

    Of language models: tokens a second that are read and written, and perplexity with --data.

    The runs of the networks alternate, so that a busy machine slows all of them alike. A difference that
    is smaller than the spread of the times is called noise.

    Of detectors: mAP with a data.yaml or labelled boxes; what the heads compute is timed.

    A .pt2 or .pt file can run any code when it is opened: give --trusted if you trust where it comes from.

    Examples:
      secateur measure runs/digits runs/digits-small --data digits
      secateur measure runs/digits-small small.onnx --data digits --memory
      secateur measure torchvision:resnet18 torchvision:resnet50 --batch 1 --batch 8 --runtime bf16
      secateur measure hf:models/smol runs/smol-80 --prompt 512
      secateur measure best.pt runs/detector-half/pruned.pt --trusted --size 320 --data data.yaml
    """
    from secateur.files import EXPORTED
    from secateur.jobs.settings import Conditions, is_checkpoint, is_pickled

    networks = [
        network_choice(source, trusted=trusted)
        if source.endswith(EXPORTED)
        else network_choice(
            source,
            weights=None if is_checkpoint(source) else weights or _usual_weights(source),
            builder=builder if is_checkpoint(source) and not is_pickled(source) else None,
            size=size,
            trusted=trusted,
        )
        for source in checkpoints
    ]
    chosen = data_choice(data, batch_size, strict, sets) if data else None
    conditions = checked_by_options(
        {
            "runtimes": ("--runtime", runtime or None),
            "batches": ("--batch", batch or None),
            "threads": ("--threads", threads or None),
            "seconds": ("--seconds", seconds),
            "prompt": ("--prompt", prompt),
        },
        Conditions,
        memory=memory,
    )
    where = device_choice(device, "auto")

    from secateur.cli.console import Reporter
    from secateur.cli.tables import brief, conditions_line, side_by_side, timing_table
    from secateur.jobs.measure import measure as work

    with Reporter(as_json=json) as reporter:
        found = work(networks, chosen, conditions=conditions, device=where, callbacks=[reporter])
        names = brief(checkpoints)
        rows = [(names[row["name"]], row) for row in found["networks"]]
        reporter.finish(side_by_side(rows), found)
        if len(found["timings"]) > len(rows):
            reporter.tell(timing_table([{**row, "name": names[row["name"]]} for row in found["timings"]]))
        reporter.tell(conditions_line(found["latency"]))


def _usual_weights(source: str) -> str | None:
    """Return the weights that are taken if none are given: those in a local folder, and no published ones."""
    return None if source.startswith("hf:") else "none"
