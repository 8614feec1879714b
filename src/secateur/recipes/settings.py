"""What can be chosen about iterative pruning, and the choices that have names."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field

from secateur.budget import Allocation
from secateur.criteria.charge import Charge
from secateur.errors import UsageError
from secateur.recipes.ranking import CURVE_BATCHES
from secateur.settings import Settings
from secateur.training.settings import FitSettings, OptimizerSettings

_CLIP_NORM = 5.0
"""Above what a sound network's gradients come to; a network just cut may start far worse, and diverge."""


class PruneSettings(Settings):
    """Rank, cut, fine-tune, repeat.

    Attributes:
        criterion: name of the rule that values a channel.
        normalize: how scores are made comparable between groups.
        charge: charge each channel for what it costs in this unit, before scores are compared between groups.
        charge_rate: score per million of that unit (arXiv 1611.06440 has 1e-3 on normalised scores).
        allocate: how the budget is shared out: ``global`` ranks the channels of all groups together,
            ``uniform`` takes the same share from every group and ranks within it, ``curves`` measures
            what each width of each group does to the outputs and takes the least damage.
        repair: refit the consumers of cut channels by least squares after each cut, before any training.
        repair_batches: batches that the refitting looks at; the more, the better it holds for others.
        curve_batches: batches that the measuring of widths looks at; a few hundred examples are enough.
        distill: share of the loss that the answers of the network before the first cut make up; of use
            where that network is well trained, and a hindrance where it is not. Only with cross-entropy.
        temperature: of the soft-max of those answers.
        mirror: let those answers be the mean of a picture's and its mirror image's, which are better; only
            for pictures of which mirroring makes no other class.
        steps: number of cuts; each leaves the same share of what the one before left.
        channels_per_step: remove so many channels at a time instead, until the budget is met.
        scoring_batches: batches looked at where no training comes before a cut; all if not given.
        filters_only: leave the channels between linear layers alone, as the earliest work did.
        round_to: widths that stay are multiples of this; ``auto`` for widths that the device runs well.
        min_channels: least channels left in a group.
        between: fine-tuning after each cut but the last.
        after: fine-tuning after the last cut.
    """

    criterion: str = "taylor"
    normalize: Literal["l2", "l1", "max", "min-max", "none"] = "l2"
    charge: Charge | None = None
    charge_rate: float = Field(default=1e-3, ge=0)
    allocate: Allocation = "global"
    repair: bool = False
    repair_batches: int = Field(default=10, ge=1)
    curve_batches: int = Field(default=CURVE_BATCHES, ge=1)
    distill: float = Field(default=0.0, ge=0, le=1)
    temperature: float = Field(default=2.0, gt=0)
    mirror: bool = False
    steps: int = Field(default=5, ge=1)
    channels_per_step: int | None = Field(default=None, ge=1)
    scoring_batches: int | None = Field(default=None, ge=1)
    filters_only: bool = False
    round_to: Annotated[int, Field(ge=1)] | Literal["auto"] = 1
    min_channels: int = Field(default=1, ge=1)
    between: FitSettings = FitSettings(epochs=1, schedule="constant", keep_best=False, clip_norm=_CLIP_NORM)
    after: FitSettings = FitSettings(epochs=10, clip_norm=_CLIP_NORM)


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
        "default": PruneSettings(
            steps=1, allocate="curves", repair=True, repair_batches=32, distill=0.9, temperature=4.0
        ),
        "plain": PruneSettings(),
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
"""Named settings: ``default``, with widths by measured damage, repair, and the unpruned network as a
teacher; ``plain``, without these: rank, cut, fine-tune; ``original``, the protocol of the first PyTorch
implementation of arXiv 1611.06440 (512 filters a step, 10 epochs after each, 15 at the end); ``paper``,
the protocol of its section 3.1 (one channel a step, 30 updates between, batches of 32)."""

CHANNELS_LEFT: MappingProxyType[str, float] = MappingProxyType({"original": 1 / 3})
"""Share of the channels that a recipe leaves where no budget is given."""


def recipe(
    name: str = "default",
    *,
    steps: int | None = None,
    channels_per_step: int | None = None,
    epochs_between: int | None = None,
    updates_between: int | None = None,
    epochs_after: int | None = None,
    optimizer: Mapping[str, Any] | None = None,
    both: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    **changes: Any,
) -> PruneSettings:
    """A named recipe with some of its settings changed; what is ``None`` stays as it is.

    Args:
        name: a name in ``RECIPES``.
        steps: number of cuts.
        channels_per_step: channels in one cut, instead of ``steps``.
        epochs_between: epochs after each cut but the last.
        updates_between: optimizer steps, instead of ``epochs_between``.
        epochs_after: epochs after the last cut.
        optimizer: changes to the optimizer, of both phases.
        both: changes to the fine-tuning of both phases, such as ``clip_norm``.
        after: changes to the fine-tuning after the last cut, such as ``schedule`` or ``average``.
        **changes: of any other setting.

    Raises:
        UsageError: there is no such recipe, or a value is wrong; all mistakes are named at once.

    >>> recipe("original", channels_per_step=100, optimizer={"learning_rate": 0.1}).after.optimizer
    OptimizerSettings(name='sgd', learning_rate=0.1, momentum=0.9, nesterov=False, weight_decay=0.0)
    """
    if name not in RECIPES:
        raise UsageError(f"no recipe is called {name!r}; choose one of {', '.join(RECIPES)}")
    if changes.get("charge") is not None and changes.get("allocate") is None:
        changes["allocate"] = "global"  # where alone scores of different groups meet
    if steps is not None and channels_per_step is not None:
        raise UsageError("steps and channels per step exclude each other; give one of them")
    if epochs_between is not None and updates_between is not None:
        raise UsageError("epochs and updates between cuts exclude each other; give one of them")
    values = RECIPES[name].model_dump()
    if steps is not None or channels_per_step is not None:
        values["channels_per_step"] = channels_per_step
    if epochs_between is not None or updates_between is not None:
        values["between"]["updates"] = updates_between
    _change(values, {"steps": steps, **changes})
    if (epochs_between or updates_between) and values["steps"] == 1 and not values["channels_per_step"]:
        raise UsageError("there is one cut, and nothing between; give more steps, or channels per step")
    _need_purpose(values, changes)
    _change(values["between"], {"epochs": epochs_between})
    _change(values["after"], {"epochs": epochs_after, **(after or {})})
    for phase in ("between", "after"):
        _change(values[phase], both or {})
        _change(values[phase]["optimizer"], optimizer or {})
    return PruneSettings(**values)


def _need_purpose(values: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    """Refuses settings of something that is not done at all: who gives one expects that it does something."""
    idle = [] if values["distill"] else [("temperature", "distill", "0.9"), ("mirror", "distill", "0.9")]
    if not values["repair"]:
        idle.append(("repair_batches", "repair", "true"))
    if values["allocate"] != "curves":
        idle.append(("curve_batches", "allocate", "curves"))
    for setting, switch, value in idle:
        if changes.get(setting):
            asked, needed = setting.replace("_", " "), switch.replace("_", " ")
            raise UsageError(
                f"{asked}: without effect while {needed} is {str(values[switch]).lower()}; "
                f"set {needed} to {value}, or leave {asked} out"
            )


def _change(values: dict[str, Any], changes: Mapping[str, Any]) -> None:
    values.update({key: value for key, value in changes.items() if value is not None})
