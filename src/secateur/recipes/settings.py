"""What can be chosen about iterative pruning, and the choices that have names."""

from __future__ import annotations

from types import MappingProxyType
from typing import Literal

from pydantic import Field

from secateur.training.settings import FitSettings, OptimizerSettings, Settings


class PruneSettings(Settings):
    """Rank, cut, fine-tune, repeat.

    Attributes:
        criterion: name of the rule that values a channel.
        normalize: how scores are made comparable between groups.
        steps: number of cuts; each leaves the same share of what the one before left.
        channels_per_step: remove so many channels at a time instead, until the budget is met.
        scoring_batches: batches looked at where no training comes before a cut; all if not given.
        filters_only: leave the channels between linear layers alone, as the earliest work did.
        round_to: widths that stay are multiples of this.
        min_channels: least channels left in a group.
        between: fine-tuning after each cut but the last.
        after: fine-tuning after the last cut.
    """

    criterion: str = "taylor"
    normalize: Literal["l2", "l1", "max", "none"] = "l2"
    steps: int = Field(default=5, ge=1)
    channels_per_step: int | None = Field(default=None, ge=1)
    scoring_batches: int | None = Field(default=None, ge=1)
    filters_only: bool = False
    round_to: int = Field(default=1, ge=1)
    min_channels: int = Field(default=1, ge=1)
    between: FitSettings = FitSettings(epochs=1, schedule="constant", keep_best=False)
    after: FitSettings = FitSettings(epochs=10)


def _constant(
    optimizer: OptimizerSettings, *, epochs: int, updates: int | None = None, best: bool = False
) -> FitSettings:
    return FitSettings(
        epochs=epochs, updates=updates, optimizer=optimizer, schedule="constant", keep_best=best
    )


_ORIGINAL = OptimizerSettings(learning_rate=1e-3, momentum=0.9)
_PAPER = OptimizerSettings(learning_rate=1e-4, momentum=0.9, weight_decay=1e-4)

RECIPES: MappingProxyType[str, PruneSettings] = MappingProxyType(
    {
        "default": PruneSettings(),
        "original": PruneSettings(
            channels_per_step=512,
            filters_only=True,
            between=_constant(_ORIGINAL, epochs=10),
            after=_constant(_ORIGINAL, epochs=15),
        ),
        "paper": PruneSettings(
            channels_per_step=1,
            between=_constant(_PAPER, epochs=0, updates=30),
            after=_constant(_PAPER, epochs=10, best=True),
        ),
    }
)
"""Named settings: ``default``; ``original``, the protocol of the first PyTorch implementation of
arXiv 1611.06440 (512 filters a step, 10 epochs after each, 15 at the end); ``paper``, the protocol
of its section 3.1 (one channel a step, 30 updates between, batches of 32)."""

ORIGINAL_CHANNELS_LEFT = 1 / 3
"""Share of the filters at which the ``original`` recipe stops, unless a budget is given."""
