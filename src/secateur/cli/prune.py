"""Define the command ``secateur prune``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from secateur.cli import options
from secateur.cli.amounts import limit, time
from secateur.cli.errors import FAILED
from secateur.cli.job_settings import limit_of_point, prune_job
from secateur.cli.processes import is_main, run_in_processes
from secateur.cli.report import report_on

if TYPE_CHECKING:
    from secateur.cli.console import Reporter

Depth = Literal["off", "auto", "only"]

_BUDGET = "Budget: what may remain, as a share (0.5, 50%) or an amount (1500000, 1.5M)"


def prune(
    network: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN|CHECKPOINT|MODEL",
            help="What to prune; required, unless --recipe is a run's config.toml.",
        ),
    ] = None,
    *,
    out: options.Out,
    data: options.OptionalData = None,
    macs: Annotated[
        float | None,
        typer.Option(
            parser=limit,
            metavar="LIMIT",
            help="Multiply-accumulates of one example.",
            rich_help_panel=_BUDGET,
        ),
    ] = None,
    params: Annotated[
        float | None,
        typer.Option(parser=limit, metavar="LIMIT", help="Parameters.", rich_help_panel=_BUDGET),
    ] = None,
    channels: Annotated[
        float | None,
        typer.Option(
            parser=limit, metavar="LIMIT", help="Channels of the prunable groups.", rich_help_panel=_BUDGET
        ),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(
            parser=limit, metavar="LIMIT", help="Peak bytes of activations.", rich_help_panel=_BUDGET
        ),
    ] = None,
    latency: Annotated[
        str | None,
        typer.Option(
            parser=time,
            metavar="LIMIT",
            help="Time of a forward pass on this device: a share, or a time such as 12ms; of one example, "
            "unless --set latency_batch=N says otherwise.",
            rich_help_panel=_BUDGET,
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Search for the smallest network that loses at most so many percentage points of accuracy "
            "on the validation images, instead of a budget.",
            rich_help_panel=_BUDGET,
        ),
    ] = None,
    point: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="The budget of point N of the frontier in --measured RUN (see secateur frontier).",
            rich_help_panel=_BUDGET,
        ),
    ] = None,
    depth: Annotated[
        Depth | None,
        typer.Option(
            help="Whether residual branches are removed too: not, together with channels, or alone.",
            show_default="off",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.toml",
            help="How to prune and train: default, plain, one-shot, original, paper, language; a file of "
            "settings; or a run's config.toml, which repeats the run.",
            show_default="default; language for text, plain without --data",
        ),
    ] = None,
    sets: options.Set = None,
    no_finetune: Annotated[
        bool,
        typer.Option(
            "--no-finetune",
            help="Do not train: one cut (or several, where the recipe removes channels in steps), and "
            "reconstruction by least squares.",
        ),
    ] = False,
    measured: options.Measured = None,
    weights: options.Weights = None,
    builder: options.Builder = None,
    trusted: options.Trusted = False,
    device: options.JobDevice = None,
    devices: options.Devices = None,
    seed: options.JobSeed = None,
    overwrite: options.Overwrite = False,
    resume: options.Resume = False,
    json: options.Json = False,
) -> None:
    """Prune a network to a budget by whole channels, verify each cut, and fine-tune.

    With --data: rank, cut, fine-tune. Without: one cut by the size of the weights, and no training.
    The result is RUN/checkpoints/best.safetensors; of a language model also RUN/pretrained, if a config
    describes it.

    Everything else is set with --set: `secateur recipe` lists the names and their defaults.

    Examples:
      secateur prune runs/digits --data digits --macs 0.25 --out runs/digits-small
      secateur prune runs/vgg16 --data images --recipe original --out runs/vgg16-small
      secateur prune runs/resnet18 --data images --macs 0.6 --no-finetune --out runs/quick
      secateur prune runs/digits --data digits --macs 0.5 --set finetune.epochs=4 --out runs/digits-half
      secateur prune runs/digits --data digits --max-drop 0.5 --out runs/digits-least
      secateur prune runs/digits --data digits --measured runs/frontier --point 5 --out runs/digits-5
      secateur prune runs/resnet56 --data images --latency 0.5 --depth auto --out runs/shorter
      secateur prune resnet18 --weights none --latency 0.5 --set widths.multiple_of=auto --out runs/half
      secateur prune hf:models/smol --data text.txt --params 0.8 --out runs/smol-80
      secateur prune best.pt --trusted --data data.yaml --macs 0.5 --out runs/detector-half
      secateur prune --recipe runs/digits-small/config.toml --out runs/digits-again
    """
    limits = {
        "budget.macs": ("--macs", macs),
        "budget.params": ("--params", params),
        "budget.channels": ("--channels", channels),
        "budget.memory": ("--memory", memory),
        "budget.latency": ("--latency", latency),
    }
    if point is not None:
        limits = limit_of_point(measured, point, {**limits, "search.max_drop": ("--max-drop", max_drop)})
    job = prune_job(
        {
            "network.source": ("RUN", network),
            "network.weights": ("--weights", weights),
            "network.builder": ("--builder", builder),
            "network.trusted": ("--trusted", trusted or None),
            "data.source": ("--data", data),
            **limits,
            "search.max_drop": ("--max-drop", max_drop),
            "measured": ("--measured", measured),
            "widths.depth": ("--depth", depth),
            "device.accelerator": ("--device", device),
            "device.devices": ("--devices", devices),
            "seed": ("--seed", seed),
            "out": ("--out", out),
            "overwrite": ("--overwrite", overwrite),
            "resume": ("--resume", resume),
        },
        recipe,
        sets or (),
        finetune=not no_finetune,
    )
    run_in_processes(job.device.devices)

    from secateur.cli.console import Reporter
    from secateur.jobs import prune as jobs

    with Reporter(as_json=json, quiet=not is_main()) as reporter:
        summary = jobs.prune(job, [reporter])
        _tell(reporter, summary)
        if is_main():
            report_on(out, reporter)
    if summary.get("search_failed"):
        raise typer.Exit(FAILED)


def _tell(reporter: Reporter, summary: Mapping[str, Any]) -> None:
    """Print the outcome, for people or for programs."""
    from secateur.cli.tables import before_after, path_table, verification_line

    reporter.finish(before_after(summary["baseline"], summary["pruned"]), summary)
    if summary.get("path"):
        reporter.tell(path_table(summary["path"]))
    if summary["removed_branches"]:
        reporter.tell(f"removed residual branches: {', '.join(summary['removed_branches'])}")
    reporter.tell(summary.get("search_failed") or verification_line(summary["verification"]))
