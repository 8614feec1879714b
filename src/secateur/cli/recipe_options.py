"""Options of a recipe: how channels are valued, what is cut at a time, and how the rest is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.amounts import step

_RECIPE, _TRAINING = "Recipe", "Training"

Measured = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN",
        help="An earlier run on the same network: its scores and width curves are used again.",
        rich_help_panel=_RECIPE,
    ),
]
Recipe = Annotated[
    str,
    typer.Option(
        help="default: widths by measured damage, repair, and the unpruned network as a teacher; plain: "
        "none of these, as always without --data; original: 512 filters a step until a third is left, 10 "
        "epochs after each and 15 at the end, SGD 1e-3 with momentum 0.9; paper: one channel a step, 30 "
        "updates between. "
        "The options below change single settings of it.",
        rich_help_panel=_RECIPE,
    ),
]
Criterion = Annotated[
    str | None,
    typer.Option(
        help="Rule that values a channel; taylor with --data, magnitude without.", rich_help_panel=_RECIPE
    ),
]
Charge = Annotated[
    str | None,
    typer.Option(
        metavar="UNIT",
        help="Charge each channel for what it costs: macs, params, bytes or memory, 1e-3 of normalised "
        "score per million.",
        rich_help_panel=_RECIPE,
    ),
]
Allocate = Annotated[
    str | None,
    typer.Option(
        help="How the budget is shared out: global ranks all channels together, uniform takes the same "
        "share from every group, curves measures what each width of each group does to the outputs.",
        rich_help_panel=_RECIPE,
    ),
]
Repair = Annotated[
    bool | None,
    typer.Option(
        "--repair/--no-repair",
        help="Refit what reads the cut channels by least squares after each cut, before any training.",
        rich_help_panel=_RECIPE,
    ),
]
RepairBatches = Annotated[
    int | None,
    typer.Option(
        help="Batches that refitting looks at; the more, the better it holds for other pictures.",
        rich_help_panel=_RECIPE,
    ),
]
CurveBatches = Annotated[
    int | None,
    typer.Option(
        help="Batches that measuring widths looks at; time and memory grow with them.",
        rich_help_panel=_RECIPE,
    ),
]
Distill = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Share of the loss in fine-tuning that the answers of the unpruned network make up.",
        rich_help_panel=_RECIPE,
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        help="Of the soft-max of those answers; higher ones tell more of the wrong classes.",
        rich_help_panel=_RECIPE,
    ),
]
Mirror = Annotated[
    bool | None,
    typer.Option(
        "--mirror",
        help="Let the unpruned network answer for the mirror image of each picture too: a better lesson, for "
        "one more of its forward passes in each step.",
        rich_help_panel=_RECIPE,
    ),
]
Steps = Annotated[int | None, typer.Option(help="Number of cuts.", rich_help_panel=_RECIPE)]
ChannelsPerStep = Annotated[
    int | None, typer.Option(help="Channels in one cut, instead of --steps.", rich_help_panel=_RECIPE)
]
EpochsBetween = Annotated[
    int | None, typer.Option(help="Epochs after each cut but the last.", rich_help_panel=_RECIPE)
]
UpdatesBetween = Annotated[
    int | None, typer.Option(help="Optimizer steps instead of --epochs-between.", rich_help_panel=_RECIPE)
]
EpochsAfter = Annotated[int | None, typer.Option(help="Epochs after the last cut.", rich_help_panel=_RECIPE)]
Finetune = Annotated[
    bool,
    typer.Option(
        "--finetune/--no-finetune",
        help="Whether to train; if not, the cut is repaired by least squares, which takes minutes. There is "
        "one cut, unless --steps or --channels-per-step, or the recipe's channels per step, say otherwise.",
        rich_help_panel=_RECIPE,
    ),
]
FiltersOnly = Annotated[
    bool | None,
    typer.Option(
        "--filters-only/--all-layers",
        help="Cut convolution filters only, or linear layers alike.",
        rich_help_panel=_RECIPE,
    ),
]
ScoringBatches = Annotated[
    int | None,
    typer.Option(help="Batches looked at where no training comes before a cut.", rich_help_panel=_RECIPE),
]
RoundTo = Annotated[
    str | None,
    typer.Option(
        parser=step,
        metavar="NUMBER|auto",
        help="Widths are multiples of this; auto: such as this device runs well.",
        rich_help_panel=_RECIPE,
    ),
]
MinChannels = Annotated[int | None, typer.Option(help="Least channels of a group.", rich_help_panel=_RECIPE)]
Schedule = Annotated[
    str | None,
    typer.Option(help="After the last cut: constant, cosine or one-cycle.", rich_help_panel=_TRAINING),
]
Average = Annotated[
    float | None,
    typer.Option(
        metavar="DECAY",
        help="After the last cut, keep the moving average of the weights (0.98: about 50 steps).",
        rich_help_panel=_TRAINING,
    ),
]
Patience = Annotated[
    int | None,
    typer.Option(
        metavar="EPOCHS",
        help="After the last cut, stop after so many epochs without a better one.",
        rich_help_panel=_TRAINING,
    ),
]
Warmup = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Share of the updates after the last cut that climb to the base rate.",
        rich_help_panel=_TRAINING,
    ),
]
