"""Define recipes: all settings of pruning, and named presets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from secateur.budget import Allocation, Widths
from secateur.errors import UsageError
from secateur.settings import Need, Settings, SettingsError, flatten, merged, mistakes, refuse_idle
from secateur.training.settings import FitSettings


class Distillation(Settings):
    """Training on the outputs of the network before the first cut (arXiv 1503.02531).

    This helps if that network is well trained, and harms if it is not.

    Attributes:
        weight: share of the loss that compares with the teacher's scores of classes or tokens, where the loss
            is cross-entropy or the next-token loss of language models; 0 for none.
        outputs: weight of the mean squared difference of all outputs, as a share of their variance, which is
            added to the loss; for networks and losses of any kind, also detectors. 0 for none.
        temperature: of the soft-max of those outputs.
        divergence: ``forward`` covers all that the teacher finds probable, ``reverse`` avoids what it finds
            improbable.
        flip: average the teacher's outputs for an image and its mirror image; only for images whose mirror
            image has the same class.
    """

    weight: float = Field(default=0.9, ge=0, le=1)
    outputs: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    temperature: float = Field(default=4.0, gt=0)
    divergence: Literal["forward", "reverse"] = "forward"
    flip: bool = False


class CostRegularization(Settings):
    """Lower the score of expensive channels (arXiv 1611.06440, section 2.2).

    Attributes:
        quantity: what counts as cost; no regularisation if not given.
        rate: normalised score per million of it.
    """

    quantity: Literal["params", "macs", "bytes", "memory"] | None = None
    rate: float = Field(default=1e-3, ge=0)


class Recipe(Settings):
    """Settings of pruning: rank, cut, reconstruct, fine-tune, repeat.

    The class defaults are the default recipe.

    Attributes:
        criterion: name of the rule that scores a channel.
        normalize: how scores are made comparable between groups.
        allocation: how a budget is divided among groups: ``"global"`` ranks the channels of all groups
            together, ``"uniform"`` takes the same share from every group and ranks within it, ``"curves"``
            measures the damage of each width of each group and minimises the sum.
        attention: what is removed from attention: ``"heads"``, ``"query_heads"`` or ``"head_dim"``, as with
            ``trace(attention=...)``. With ``"auto"``, where several query heads share a key/value head, a
            plan that removes whole heads and one that removes query heads are made for the budget, and the
            one that changes the outputs less, before any reconstruction, is taken.
        widths: which widths groups may have, and whether residual branches are removed. Modules in
            ``widths.ignore`` are not changed at all, as with ``trace(ignore=...)``: the channels that they
            read stay too.
        steps: number of cuts; each leaves the same share of what remained after the previous one.
        channels_per_step: remove this many channels at a time instead, until the budget is met.
        scoring_batches: batches for scores if no training precedes a cut; all if not
            given.
        curve_batches: batches for measuring width curves; a few hundred examples are enough.
        reconstruct: fit the consumers of removed channels by least squares after each cut, before any
            training.
        reconstruct_batches: batches for the fit; with more of them, it is more accurate on other examples.
        reconstruct_ridge: strength of the regularisation of the fit toward the old weights, for the
            reconstruction and for width curves; language models need far more, since a few
            features with huge values dominate its scale.
        distillation: training on the outputs of the unpruned network.
        cost_regularization: lower the score of expensive channels.
        filters_only: do not prune the channels between linear layers, as in the earliest work.
        between: fine-tuning after each cut except the last.
        finetune: fine-tuning after the last cut.

    Raises:
        UsageError: at least one value is wrong; the message names all of them.

    Example:
        >>> recipe = Recipe(steps=3, finetune={"epochs": 4})
        >>> recipe.changed({"finetune": {"epoch": 8}})
        Traceback (most recent call last):
        secateur.settings.SettingsError: finetune.epoch: unknown; did you mean 'finetune.epochs'?
    """

    criterion: str = "taylor"
    normalize: Literal["l2", "l1", "max", "min-max", "none"] = "l2"
    allocation: Allocation = "curves"
    attention: Literal["auto", "heads", "query_heads", "head_dim"] = "auto"
    widths: Widths = Widths()
    steps: int = Field(default=1, ge=1)
    channels_per_step: int | None = Field(default=None, ge=1)
    scoring_batches: int | None = Field(default=None, ge=1)
    curve_batches: int = Field(default=8, ge=1)
    reconstruct: bool = True
    reconstruct_batches: int = Field(default=32, ge=1)
    reconstruct_ridge: float = Field(default=1e-3, ge=0)
    distillation: Distillation = Distillation()
    cost_regularization: CostRegularization = CostRegularization()
    filters_only: bool = False
    between: FitSettings = FitSettings(epochs=1, schedule="constant", keep_best=False)
    finetune: FitSettings = FitSettings()

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Recipe:
        """Return a recipe by its name, with some settings changed.

        Args:
            name: ``"default"``: widths by measured damage, reconstruction, and the unpruned network as a
                teacher. ``"plain"``: rank, cut, fine-tune in five steps, without these. ``"one-shot"``: rank
                and cut; no reconstruction, no training. ``"original"``: the protocol of the first PyTorch
                implementation of arXiv 1611.06440 (512 filters per step, 10 epochs after each, 15 at the
                end). ``"paper"``: the protocol of its section 3.1 (one channel per step, 30 updates between,
                batches of 32). ``"language"``: the default recipe for language models, with AdamW, a
                teacher at temperature 1, and channels in the order of the error of refitted consumers.
            **changes: as for :meth:`changed`.

        Raises:
            UsageError: there is no recipe of this name, or a change is wrong.

        >>> Recipe.preset("paper", finetune={"epochs": 4}).channels_per_step
        1
        """
        if name not in PRESETS:
            raise UsageError(f"no recipe is named {name!r}; choose one of {', '.join(PRESETS)}")
        return cls(**PRESETS[name]).changed(changes)

    def changed(self, changes: Mapping[str, Any]) -> Recipe:
        """Return this recipe with some settings changed, checked as a whole.

        Alternatives replace each other: ``steps`` and ``channels_per_step``; ``epochs`` and ``updates`` of a
        phase. Cost regularisation changes scores, so it replaces an allocation by curves by a global one.

        Args:
            changes: new values by name, nested like the recipe: ``{"finetune": {"epochs": 4}}`` changes this
                setting alone.

        Raises:
            UsageError: a name is unknown, a value is wrong, settings exclude each other, or a setting has no
                effect; the message names all mistakes with dotted paths.
        """
        if not changes:
            return self
        recipe = self.with_changes(changes)
        refuse_idle(recipe.needs(), [path for path, _ in flatten(changes)])
        return recipe

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Recipe:
        """Read a recipe from a table as in a file: settings by name, nested like the recipe.

        Args:
            table: may name the ``preset`` that its settings change; the default recipe if not given. Unlike
                in :meth:`changed`, settings without an effect are allowed, since a table may contain all.

        Raises:
            UsageError: there is no such preset, or a setting is wrong.

        >>> Recipe.from_table({"preset": "plain", "finetune": {"epochs": 4}}).steps
        5
        """
        changes = {name: value for name, value in table.items() if name != "preset"}
        return cls.preset(table.get("preset", "default")).with_changes(changes)

    @property
    def several_cuts(self) -> bool:
        """Return whether there may be more than one cut."""
        return self.steps > 1 or self.channels_per_step is not None

    @property
    def trains(self) -> bool:
        """Return whether there is any training."""
        return self.finetune.trains or (self.several_cuts and self.between.trains)

    def with_changes(self, changes: Mapping[str, Any]) -> Recipe:
        """Return this recipe with some settings changed, whether or not that has an effect."""
        try:
            return type(self).model_validate(merged(self, _with_alternatives(changes)))
        except ValidationError as error:
            raise SettingsError(mistakes(error, type(self))) from None

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Merge nested values with the defaults of this recipe, not with those of their class."""
        if not isinstance(values, Mapping):
            return values
        defaults = {name: field.default for name, field in cls.model_fields.items()}
        return {name: merged(defaults.get(name), value) for name, value in _with_alternatives(values).items()}

    @model_validator(mode="after")
    def _exclusive(self) -> Recipe:
        if self.channels_per_step is not None and self.steps != 1:
            raise ValueError("steps and channels_per_step exclude each other; give one of them")
        for name in ("between", "finetune"):
            phase: FitSettings = getattr(self, name)
            if phase.updates is not None and phase.epochs and {"epochs", "updates"} <= phase.model_fields_set:
                raise ValueError(f"{name}.epochs and {name}.updates exclude each other; give one of them")
        if self.cost_regularization.quantity is not None and self.allocation == "curves":
            raise ValueError(
                "cost_regularization.quantity: no effect while allocation is 'curves', which does not "
                "compare scores between groups; set allocation to 'global' or 'uniform'"
            )
        if self.widths.depth != "off":
            if self.cost_regularization.quantity is not None:
                raise ValueError(
                    "cost_regularization.quantity: no effect while widths.depth removes residual branches, "
                    "which compares scores by cost already; set widths.depth to 'off'"
                )
            if self.allocation == "uniform":
                raise ValueError(
                    "allocation 'uniform' takes the same share of every group, and widths.depth removes "
                    "whole branches; set allocation to 'global' or 'curves', or widths.depth to 'off'"
                )
        return self

    def untrained(self) -> Recipe:
        """Return this recipe without training: with reconstruction, and one cut unless it counts channels."""
        still = {"epochs": 0, "updates": None}
        once = {"steps": 1} if self.channels_per_step is None else {}
        return self.with_changes({**once, "reconstruct": True, "between": still, "finetune": still})

    def training_needs(self, reason: str, remedy: str = "") -> Iterator[Need]:
        """List the settings of training, for where nothing is trained; those that are off agree with that.

        Args:
            reason: why nothing is trained, as for :class:`secateur.settings.Need`.
            remedy: what to do about it, if anything.
        """
        phases = self.model_dump(include={"between", "finetune", "distillation"})
        for path, value in flatten(phases):
            yield Need(path, bool(value), reason, remedy)

    def needs(self) -> Iterator[Need]:
        """List settings that need another one."""
        untaught = self.distillation.weight == 0
        teach = ("while distillation.weight is 0", "set distillation.weight to 0.9")
        yield Need("distillation.temperature", untaught, *teach)
        yield Need("distillation.divergence", untaught, *teach)
        yield Need("distillation.flip", untaught and self.distillation.flip, *teach)
        fit = "while reconstruct is false", "set reconstruct to true"
        yield Need("reconstruct_batches", not self.reconstruct, *fit)
        yield Need("reconstruct_ridge", not self.reconstruct and self.allocation != "curves", *fit)
        by_curves = f"while allocation is {self.allocation!r}", "set allocation to 'curves'"
        yield Need("curve_batches", self.allocation != "curves", *by_curves)
        yield Need("normalize", self.allocation == "curves", by_curves[0], "set allocation to 'global'")
        depth = f"while widths.depth is {self.widths.depth!r}", "set widths.depth to 'off'"
        yield Need("normalize", self.widths.depth != "off", *depth)
        uncounted = self.cost_regularization.quantity is None
        no_quantity = "while there is no quantity", "set cost_regularization.quantity"
        yield Need("cost_regularization.rate", uncounted, *no_quantity)
        yield from self.between.needs("between")
        once = self.steps == 1 and self.channels_per_step is None
        one_cut = "while there is one cut", "set steps above 1 or channels_per_step"
        for setting in FitSettings.model_fields:
            used = getattr(self.between, setting) if setting in ("epochs", "updates") else self.between.trains
            yield Need(f"between.{setting}", once and bool(used), *one_cut)
        for setting in ("keep_best", "patience"):
            reason = "while networks are compared after the last cut only"
            yield Need(f"between.{setting}", True, reason, f"set finetune.{setting}")
        yield from self.finetune.needs("finetune")


def _with_alternatives(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Add the values that follow from changes: alternatives that they replace."""
    changes = dict(changes)
    if "steps" in changes:
        changes.setdefault("channels_per_step", None)
    elif changes.get("channels_per_step") is not None:
        changes["steps"] = 1
    for name in ("between", "finetune"):
        phase = changes.get(name)
        if not isinstance(phase, Mapping):
            continue
        if "epochs" in phase:
            changes[name] = {"updates": None, **phase}
        elif phase.get("updates") is not None:
            changes[name] = {"epochs": None, **phase}
    regularization = changes.get("cost_regularization")
    if isinstance(regularization, Mapping) and regularization.get("quantity") is not None:
        changes.setdefault("allocation", "global")
    return changes


_PLAIN = {
    "allocation": "global",
    "reconstruct": False,
    "reconstruct_batches": 10,
    "distillation": {"weight": 0},
}
_ORIGINAL = {"learning_rate": 1e-3, "momentum": 0.9}
_PAPER = {"learning_rate": 1e-4, "momentum": 0.9, "weight_decay": 1e-4}


def _constant(optimizer: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
    plain = {"schedule": "constant", "warmup": 0, "clip_norm": 0, "keep_best": False}
    return {"optimizer": optimizer, **plain, **settings}


_LANGUAGE = {"optimizer": {"name": "adamw"}, "clip_norm": 1.0}

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "default": {},
        "plain": {**_PLAIN, "steps": 5},
        "one-shot": {**_PLAIN, "between": {"epochs": 0}, "finetune": {"epochs": 0}},
        "original": {
            **_PLAIN,
            "channels_per_step": 512,
            "filters_only": True,
            "between": _constant(_ORIGINAL, epochs=10),
            "finetune": _constant(_ORIGINAL, epochs=15),
        },
        "paper": {
            **_PLAIN,
            "channels_per_step": 1,
            "between": _constant(_PAPER, updates=30),
            "finetune": _constant(_PAPER, epochs=10, keep_best=True),
        },
        "language": {
            "criterion": "reconstruction",
            "scoring_batches": 16,
            "curve_batches": 16,
            "reconstruct_batches": 16,
            "reconstruct_ridge": 1.0,
            "distillation": {"weight": 0.5, "temperature": 1},
            "between": _LANGUAGE,
            "finetune": _LANGUAGE,
        },
    }
)
"""The settings of named recipes that differ from the default; see :meth:`Recipe.preset`."""

CHANNELS_LEFT: Mapping[str, float] = MappingProxyType({"original": 1 / 3})
"""Share of the channels that a recipe leaves if no budget is given."""
