"""``secateur prune``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli import options
from secateur.cli.amounts import amount, step, time
from secateur.cli.processes import is_first, machine, shared
from secateur.cli.report import report_on
from secateur.cli.typed import typed_line

if TYPE_CHECKING:
    from secateur.cli.console import Reporter

_BUDGET = "Budget, at least one of: a share (0.5, 50%) or an amount (1500000, 1.5M) that may remain"
_SEARCH, _RECIPE, _TRAINING = "Search", "Recipe", "Training"


def prune(
    network: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT|MODEL", help="What to make smaller.")],
    out: options.Out,
    data: options.OptionalData = None,
    macs: Annotated[
        float | None,
        typer.Option(
            parser=amount,
            metavar="LIMIT",
            help="Multiply-accumulates of one example.",
            rich_help_panel=_BUDGET,
        ),
    ] = None,
    params: Annotated[
        float | None,
        typer.Option(parser=amount, metavar="LIMIT", help="Parameters.", rich_help_panel=_BUDGET),
    ] = None,
    channels: Annotated[
        float | None,
        typer.Option(
            parser=amount, metavar="LIMIT", help="Channels of the prunable groups.", rich_help_panel=_BUDGET
        ),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(
            parser=amount, metavar="LIMIT", help="Peak bytes of activations.", rich_help_panel=_BUDGET
        ),
    ] = None,
    latency: Annotated[
        str | None,
        typer.Option(
            parser=time,
            metavar="LIMIT",
            help="Time of a forward pass of --batch examples on this device: a share, or such as 12ms.",
            rich_help_panel=_BUDGET,
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Instead of a budget: look for the smallest network that loses no more accuracy on the "
            "validation pictures than so many percentage points.",
            rich_help_panel=_SEARCH,
        ),
    ] = None,
    shrink: Annotated[
        str,
        typer.Option(
            help="What to make small: macs, params, channels, memory, latency.", rich_help_panel=_SEARCH
        ),
    ] = "macs",
    tries: Annotated[
        int, typer.Option(help="Most networks to make on the way.", rich_help_panel=_SEARCH)
    ] = 6,
    measured: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="An earlier run on the same network: its scores and width curves are used again.",
            rich_help_panel=_RECIPE,
        ),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            help="default: widths by measured damage, repair, and the unpruned network as a teacher; plain: "
            "none of these, as always without --data; original: 512 filters a step until a third is left, 10 "
            "epochs after each and 15 at the end, SGD 1e-3 with momentum 0.9; paper: one channel a step, 30 "
            "updates between. "
            "The options below change single settings of it.",
            rich_help_panel=_RECIPE,
        ),
    ] = "default",
    criterion: Annotated[
        str | None,
        typer.Option(
            help="Rule that values a channel; taylor with --data, magnitude without.", rich_help_panel=_RECIPE
        ),
    ] = None,
    charge: Annotated[
        str | None,
        typer.Option(
            metavar="UNIT",
            help="Charge each channel for what it costs: macs, params, bytes or memory, 1e-3 of normalised "
            "score per million.",
            rich_help_panel=_RECIPE,
        ),
    ] = None,
    allocate: Annotated[
        str | None,
        typer.Option(
            help="How the budget is shared out: global ranks all channels together, uniform takes the same "
            "share from every group, curves measures what each width of each group does to the outputs.",
            rich_help_panel=_RECIPE,
        ),
    ] = None,
    repair: Annotated[
        bool | None,
        typer.Option(
            "--repair/--no-repair",
            help="Refit what reads the cut channels by least squares after each cut, before any training.",
            rich_help_panel=_RECIPE,
        ),
    ] = None,
    repair_batches: Annotated[
        int | None,
        typer.Option(help="Batches that refitting looks at.", rich_help_panel=_RECIPE),
    ] = None,
    distill: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Share of the loss in fine-tuning that the answers of the unpruned network make up.",
            rich_help_panel=_RECIPE,
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Number of cuts.", rich_help_panel=_RECIPE)] = None,
    channels_per_step: Annotated[
        int | None, typer.Option(help="Channels in one cut, instead of --steps.", rich_help_panel=_RECIPE)
    ] = None,
    epochs_between: Annotated[
        int | None, typer.Option(help="Epochs after each cut but the last.", rich_help_panel=_RECIPE)
    ] = None,
    updates_between: Annotated[
        int | None, typer.Option(help="Optimizer steps instead of --epochs-between.", rich_help_panel=_RECIPE)
    ] = None,
    epochs_after: Annotated[
        int | None, typer.Option(help="Epochs after the last cut.", rich_help_panel=_RECIPE)
    ] = None,
    finetune: Annotated[
        bool,
        typer.Option(
            "--finetune/--no-finetune",
            help="Whether to train; if not, one cut is repaired by least squares, which takes minutes.",
            rich_help_panel=_RECIPE,
        ),
    ] = True,
    filters_only: Annotated[
        bool | None,
        typer.Option(
            "--filters-only/--all-layers",
            help="Cut convolution filters only, or linear layers alike.",
            rich_help_panel=_RECIPE,
        ),
    ] = None,
    scoring_batches: Annotated[
        int | None,
        typer.Option(help="Batches looked at where no training comes before a cut.", rich_help_panel=_RECIPE),
    ] = None,
    round_to: Annotated[
        str | None,
        typer.Option(
            parser=step,
            metavar="NUMBER|auto",
            help="Widths are multiples of this; auto: such as this device runs well.",
            rich_help_panel=_RECIPE,
        ),
    ] = None,
    min_channels: Annotated[
        int | None, typer.Option(help="Least channels of a group.", rich_help_panel=_RECIPE)
    ] = None,
    ignore: options.Ignore = None,
    only: options.Only = None,
    size: options.Size = None,
    batch_size: options.BatchSize = 32,
    strict: options.Strict = False,
    optimizer: Annotated[str | None, typer.Option(help="sgd or adamw.", rich_help_panel=_TRAINING)] = None,
    lr: Annotated[
        float | None, typer.Option("--lr", help="Base learning rate.", rich_help_panel=_TRAINING)
    ] = None,
    momentum: Annotated[float | None, typer.Option(help="Of sgd.", rich_help_panel=_TRAINING)] = None,
    weight_decay: Annotated[float | None, typer.Option(help="On weights.", rich_help_panel=_TRAINING)] = None,
    schedule: Annotated[
        str | None,
        typer.Option(help="After the last cut: constant, cosine or one-cycle.", rich_help_panel=_TRAINING),
    ] = None,
    average: Annotated[
        float | None,
        typer.Option(
            metavar="DECAY",
            help="After the last cut, keep the moving average of the weights (0.98: about 50 steps).",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            metavar="EPOCHS",
            help="After the last cut, stop after so many epochs without a better one.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    warmup: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Share of the updates after the last cut that climb to the base rate.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    label_smoothing: Annotated[
        float | None,
        typer.Option(help="Weight of the uniform distribution in the target.", rich_help_panel=_TRAINING),
    ] = None,
    clip_norm: options.ClipNorm = None,
    mixup: options.Mixup = 0.0,
    weights: options.Weights = None,
    model: options.Builder = None,
    batch: options.Batch = 1,
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
    """Cut a network down to a budget by whole channels, prove each cut, and fine-tune.

    With --data: rank, cut, fine-tune, repeat. Without: one cut by the size of the weights, and no training.
    The result is RUN/checkpoints/best.safetensors.

    Examples:
      secateur prune runs/digits --data digits --macs 0.25 --out runs/digits-small
      secateur prune runs/vgg16 --data pictures --recipe original --out runs/vgg16-small
      secateur prune runs/resnet18 --data pictures --macs 0.6 --no-finetune --out runs/quick
      secateur prune runs/digits --data digits --max-drop 0.5 --out runs/digits-least
      secateur prune torchvision:resnet18 --weights none --latency 0.5 --round-to auto --out runs/half
    """
    from secateur.cli.console import Reporter, listening
    from secateur.errors import UsageError
    from secateur.jobs import prune as jobs
    from secateur.jobs.settings import PruneJob
    from secateur.recipes import recipe as named_recipe

    given = {"macs": macs, "params": params, "channels": channels, "memory": memory, "latency": latency}
    limits = _limits(given, max_drop, recipe)
    if not finetune:
        if epochs_between or updates_between or epochs_after:
            raise UsageError("--no-finetune and epochs or updates exclude each other; give one of them")
        steps, repair = steps or 1, True if repair is None else repair
        epochs_between, updates_between, epochs_after = 0, None, 0
    settings = named_recipe(
        recipe if data or recipe != "default" else "plain",
        steps=steps,
        channels_per_step=channels_per_step,
        epochs_between=epochs_between,
        updates_between=updates_between,
        epochs_after=epochs_after,
        both={"clip_norm": clip_norm, "label_smoothing": label_smoothing},
        after={"schedule": schedule, "warmup": warmup, "average": average, "patience": patience},
        optimizer={
            "name": optimizer,
            "learning_rate": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
        },
        criterion=criterion or (None if data else jobs.DATA_FREE),
        filters_only=filters_only,
        charge=charge,
        allocate=allocate,
        repair=repair,
        repair_batches=repair_batches,
        distill=distill,
        scoring_batches=scoring_batches,
        round_to=round_to,
        min_channels=min_channels,
    )
    job = PruneJob.checked(
        network={"source": network, "weights": weights, "size": size, "builder": model},
        data={"source": data, "batch_size": batch_size, "strict": strict, "mixup": mixup} if data else None,
        out=out,
        overwrite=overwrite,
        resume=resume,
        seed=seed,
        limits=limits or None,
        search=None if max_drop is None else {"max_drop": max_drop, "of": shrink, "tries": tries},
        measured=measured,
        recipe=settings,
        ignore=tuple(ignore or ()),
        only=tuple(only or ()),
        device=machine(device, devices, precision, channels_last),
        latency_batch=batch,
        typed=typed_line(),
    )
    shared(devices)
    with Reporter(as_json=json, quiet=not is_first()) as reporter:
        with listening(out, reporter, tensorboard=tensorboard and is_first()) as listener:
            summary = jobs.prune(job, listener)
        _tell(reporter, summary)
        if is_first():
            report_on(out, reporter)


def _tell(reporter: Reporter, summary: Mapping[str, Any]) -> None:
    """The outcome, for people or for programs."""
    from secateur.cli.tables import before_after, path_table, proof_line

    reporter.finish(before_after(summary["baseline"], summary["pruned"]), summary)
    if summary.get("path"):
        reporter.tell(path_table(summary["path"]))
    reporter.tell(proof_line(summary["verification"]))


def _limits(
    given: Mapping[str, float | str | None], max_drop: float | None, recipe: str
) -> dict[str, float | str]:
    """The limits that were given, or the recipe's own; none if the budget is to be looked for."""
    from secateur.errors import UsageError
    from secateur.recipes import CHANNELS_LEFT

    limits = {name: limit for name, limit in given.items() if limit is not None}
    options = ", ".join(f"--{name}" for name in limits or given)
    if max_drop is not None and limits:
        raise UsageError(f"--max-drop looks for the budget by itself; leave {options} out")
    if max_drop is not None or limits:
        return limits
    if recipe not in CHANNELS_LEFT:
        raise UsageError(
            f"say what may remain: give at least one of {options}; or what may be lost: --max-drop"
        )
    return {"channels": CHANNELS_LEFT[recipe]}
