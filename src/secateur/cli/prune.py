"""``secateur prune``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli import options
from secateur.cli import recipe_options as recipes
from secateur.cli.amounts import amount, time
from secateur.cli.processes import device_options, is_main, run_in_processes
from secateur.cli.report import report_on
from secateur.cli.typed import typed_line

if TYPE_CHECKING:
    from secateur.cli.console import Reporter

_BUDGET = "Budget, at least one of: a share (0.5, 50%) or an amount (1500000, 1.5M) that may remain"
_SEARCH = "Search"
_TRAINING = {
    *("epochs_between", "updates_between", "epochs_after", "distill", "temperature", "mirror", "mixup"),
    *("optimizer", "lr", "momentum", "nesterov", "weight_decay", "schedule", "average", "patience"),
    *("warmup", "label_smoothing", "clip_norm"),
}
"""Parameters of what is not done without fine-tuning; none has a default, or it is nothing."""


def prune(
    context: typer.Context,
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
    measured: recipes.Measured = None,
    recipe: recipes.Recipe = "default",
    criterion: recipes.Criterion = None,
    charge: recipes.Charge = None,
    allocate: recipes.Allocate = None,
    repair: recipes.Repair = None,
    repair_batches: recipes.RepairBatches = None,
    curve_batches: recipes.CurveBatches = None,
    distill: recipes.Distill = None,
    temperature: recipes.Temperature = None,
    mirror: recipes.Mirror = None,
    steps: recipes.Steps = None,
    channels_per_step: recipes.ChannelsPerStep = None,
    epochs_between: recipes.EpochsBetween = None,
    updates_between: recipes.UpdatesBetween = None,
    epochs_after: recipes.EpochsAfter = None,
    finetune: recipes.Finetune = True,
    filters_only: recipes.FiltersOnly = None,
    scoring_batches: recipes.ScoringBatches = None,
    round_to: recipes.RoundTo = None,
    min_channels: recipes.MinChannels = None,
    ignore: options.Ignore = None,
    only: options.Only = None,
    size: options.Size = None,
    batch_size: options.BatchSize = 32,
    strict: options.Strict = False,
    optimizer: options.Optimizer = None,
    lr: options.LearningRate = None,
    momentum: options.Momentum = None,
    nesterov: options.Nesterov = None,
    weight_decay: options.WeightDecay = None,
    schedule: recipes.Schedule = None,
    average: recipes.Average = None,
    patience: recipes.Patience = None,
    warmup: recipes.Warmup = None,
    label_smoothing: options.LabelSmoothing = None,
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
    """Cut a network down to a budget by whole channels, verify each cut, and fine-tune.

    With --data: rank, cut, fine-tune, repeat. Without: one cut by the size of the weights, and no training.
    The result is RUN/checkpoints/best.safetensors.

    Examples:
      secateur prune runs/digits --data digits --macs 0.25 --out runs/digits-small
      secateur prune runs/vgg16 --data pictures --recipe original --out runs/vgg16-small
      secateur prune runs/resnet18 --data pictures --macs 0.6 --no-finetune --out runs/quick
      secateur prune runs/digits --data digits --max-drop 0.5 --out runs/digits-least
      secateur prune torchvision:resnet18 --weights none --latency 0.5 --round-to auto --out runs/half
    """
    from secateur.cli.console import Reporter, job_callbacks
    from secateur.jobs import prune as jobs
    from secateur.jobs.settings import PruneJob
    from secateur.recipes import Recipe

    asked = {"macs": macs, "params": params, "channels": channels, "memory": memory, "latency": latency}
    limits = _limits(asked, max_drop, recipe)
    if not finetune or not data:
        _not_trained(context, finetune)
    if not finetune:
        steps, repair = steps or _cuts(recipe, channels_per_step), True if repair is None else repair
        epochs_between, updates_between, epochs_after = 0, None, 0
    if charge is not None and allocate is None:
        allocate = "global"  # where alone scores of different groups are compared
    phase = {"clip_norm": clip_norm, "label_smoothing": label_smoothing}
    trained_by = {
        "name": optimizer,
        "learning_rate": lr,
        "momentum": momentum,
        "nesterov": nesterov,
        "weight_decay": weight_decay,
    }
    settings = Recipe.preset(recipe if data or recipe != "default" else "plain").changed(
        _given(
            {
                "criterion": criterion or (None if data else jobs.DATA_FREE),
                "cost_regularization": {"unit": charge},
                "allocation": allocate,
                "widths": {
                    "multiple_of": round_to,
                    "min_channels": min_channels,
                    "ignore": ignore,
                    "only": only,
                },
                "steps": steps,
                "channels_per_step": channels_per_step,
                "scoring_batches": scoring_batches,
                "curve_batches": curve_batches,
                "reconstruct": repair,
                "reconstruct_batches": repair_batches,
                "distillation": {"weight": distill, "temperature": temperature, "flip": mirror},
                "filters_only": filters_only,
                "between": {
                    "epochs": epochs_between,
                    "updates": updates_between,
                    **phase,
                    "optimizer": trained_by,
                },
                "finetune": {
                    "epochs": epochs_after,
                    "schedule": schedule,
                    "warmup": warmup,
                    "average": average,
                    "patience": patience,
                    **phase,
                    "optimizer": trained_by,
                },
            }
        )
    )
    job = PruneJob(
        network={"source": network, "weights": weights, "size": size, "builder": model},
        data={"source": data, "batch_size": batch_size, "strict": strict, "mixup": mixup} if data else None,
        out=out,
        overwrite=overwrite,
        resume=resume,
        seed=seed,
        budget=limits or None,
        search=None if max_drop is None else {"max_drop": max_drop, "of": shrink, "tries": tries},
        measured=measured,
        recipe=settings,
        device=device_options(device, devices, precision, channels_last),
        latency_batch=batch,
        typed=typed_line(),
    )
    run_in_processes(devices)
    with Reporter(as_json=json, quiet=not is_main()) as reporter:
        with job_callbacks(out, reporter, tensorboard=tensorboard and is_main()) as callbacks:
            summary = jobs.prune(job, callbacks)
        _tell(reporter, summary)
        if is_main():
            report_on(out, reporter)


def _tell(reporter: Reporter, summary: Mapping[str, Any]) -> None:
    """The outcome, for people or for programs."""
    from secateur.cli.tables import before_after, path_table, verification_line

    reporter.finish(before_after(summary["baseline"], summary["pruned"]), summary)
    if summary.get("path"):
        reporter.tell(path_table(summary["path"]))
    reporter.tell(verification_line(summary["verification"]))


def _not_trained(context: typer.Context, finetune: bool) -> None:
    """Refuses options of a training that there will not be."""
    from secateur.errors import UsageError

    asked = {name for name in _TRAINING if context.params[name]}
    options_asked = [max(option.opts, key=len) for option in context.command.params if option.name in asked]
    idle = " and ".join(options_asked)
    if not idle:
        return
    if not finetune:
        raise UsageError(f"--no-finetune and {idle} exclude each other; leave one of them out")
    raise UsageError(f"without --data nothing is trained; give --data, or leave out {idle}")


def _cuts(recipe: str, channels_per_step: int | None) -> int | None:
    """How many cuts there are without training: one, unless the pace is in channels."""
    from secateur.recipes import PRESETS

    own = PRESETS[recipe].get("channels_per_step") if recipe in PRESETS else None
    return None if channels_per_step or own else 1


def _given(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what was not given."""
    inner = {name: _given(value) if isinstance(value, Mapping) else value for name, value in changes.items()}
    return {name: value for name, value in inner.items() if value is not None and value != {}}


def _limits(
    asked: Mapping[str, float | str | None], max_drop: float | None, recipe: str
) -> dict[str, float | str]:
    """The limits that were given, or the recipe's own; none if the budget is to be looked for."""
    from secateur.errors import UsageError
    from secateur.recipes import CHANNELS_LEFT

    limits = {name: limit for name, limit in asked.items() if limit is not None}
    options = ", ".join(f"--{name}" for name in limits or asked)
    if max_drop is not None and limits:
        raise UsageError(f"--max-drop looks for the budget by itself; leave {options} out")
    if max_drop is not None or limits:
        return limits
    if recipe not in CHANNELS_LEFT:
        raise UsageError(
            f"say what may remain: give at least one of {options}; or what may be lost: --max-drop"
        )
    return {"channels": CHANNELS_LEFT[recipe]}
