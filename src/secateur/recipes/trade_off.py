"""Compute the trade-off between cost and quality: several budgets from one measurement of width curves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from torch import nn

from secateur.batches import LossFunction
from secateur.budget import Budget, forecast
from secateur.budget.limits import NANOSECONDS, QUANTITIES
from secateur.criteria import resolve
from secateur.errors import BudgetError, UsageError
from secateur.formats import count, table
from secateur.graph import Cost, ExampleInputs, trace
from secateur.graph.cutting.tensors import copy_with
from secateur.plan import PruningPlan
from secateur.recipes.callbacks import Callback
from secateur.recipes.context import RecipeContext, Training
from secateur.recipes.latency_tuner import LatencyOptions
from secateur.recipes.measured import Measured, fingerprint
from secateur.recipes.recipe import Recipe
from secateur.recipes.runner import left_alone, run_recipe
from secateur.training.evaluate import Batches, Evaluation, validate
from secateur.training.events import report_note, report_progress
from secateur.verification import Verification

Axis = Literal["macs", "params", "latency"]
"""The quantity that is limited along a frontier."""

_LARGEST, _SMALLEST = 0.9, 0.1


@dataclass(frozen=True)
class FrontierPoint:
    """A network at one budget: cut, verified and reconstructed, but not trained.

    Attributes:
        number: from 1, the largest network first.
        share: of the limited quantity that the budget allows.
        plan: what was removed.
        verification: how the smaller network compares with the masked original.
        evaluation: on the validation examples.
        latency_ms: measured time, if latency is limited.
    """

    number: int
    share: float
    plan: PruningPlan
    verification: Verification
    evaluation: Evaluation
    latency_ms: float | None = None

    @property
    def cost(self) -> Cost:
        """Return the exact costs of the smaller network."""
        return self.plan.cost_after

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return {
            "number": self.number,
            "share": self.share,
            "cost": asdict(self.cost),
            "latency_ms": self.latency_ms,
            "channels_removed": self.plan.channels_removed,
            "verified": self.verification.ok,
            **self.evaluation.to_dict(),
        }


@dataclass(frozen=True)
class Frontier:
    """The trade-off between cost and quality of a network, without training.

    Attributes:
        by: the limited quantity.
        baseline: evaluation of the network as it is.
        cost: of the network as it is.
        points: the largest network first.
        measured: scores and width curves of the network; they serve later budgets too.
        latency_ms: time of the network as it is, if latency is limited.

    Example:
        >>> import torch
        >>> import secateur as sec
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> batches = [(torch.randn(32, 4), torch.randint(0, 2, (32,)))]
        >>> found = sec.frontier(net, batches[0][0], batches, points=3)
        >>> [point.share for point in found.points]
        [0.9, 0.5, 0.1]
        >>> [point.cost.macs for point in found.points], found.cost.macs
        ([84, 48, 6], 96)
    """

    by: Axis
    baseline: Evaluation
    cost: Cost
    points: tuple[FrontierPoint, ...]
    measured: Measured
    latency_ms: float | None = None

    def __str__(self) -> str:
        points = [("whole", self.cost, self.baseline)]
        points += [(str(point.number), point.cost, point.evaluation) for point in self.points]
        rows = [("", "MACs", "parameters", self.baseline.name)]
        for name, cost, found in points:
            quality = found.kind.show(found.metric)
            if found.examples:
                quality += f" ± {found.kind.show_error(found.error)}"
            rows.append((name, count(cost.macs), count(cost.params), quality))
        return "\n".join(table(rows, left=(3,)))

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return {
            "by": self.by,
            "baseline": {
                "number": 0,
                "share": None,
                "cost": asdict(self.cost),
                "latency_ms": self.latency_ms,
                **self.baseline.to_dict(),
            },
            "points": [point.to_dict() for point in self.points],
        }


def frontier(
    model: nn.Module,
    example_inputs: ExampleInputs,
    batches: Batches | Training,
    loss_fn: LossFunction | None = None,
    by: Axis = "macs",
    points: int = 8,
    recipe: Recipe | str | None = None,
    callbacks: Sequence[Callback] = (),
) -> Frontier:
    """Compute the trade-off between cost and quality, without training.

    The damage of every width of every group is measured once. From that follows a plan for each budget; a
    copy of the network is cut by it, verified, reconstructed and evaluated. The network itself is not
    changed.

    Args:
        model: any network that can be exported.
        example_inputs: a tensor, a tuple of arguments or a dict of named ones, batch first.
        batches: pairs of inputs and targets, or mappings of named arguments with the labels among them,
            to measure, reconstruct and evaluate on; or a :class:`secateur.recipes.Training` with separate
            ``validation`` batches, or with a ``metric`` of your own.
        loss_fn: as for :func:`secateur.prune`.
        by: the quantity that is limited: ``"macs"``, ``"params"`` or ``"latency"``.
        points: number of budgets, at equal distances from 90% of the quantity down to 10%, or to the least
            that can be reached.
        recipe: how scores, plans and cuts are made; its training is left out. The default recipe if not
            given. With ``attention="auto"``, whole heads are removed where they can be.
        callbacks: receive reports while it runs.

    Returns:
        A network's plan, costs and evaluation for each budget.

    Raises:
        TraceError: the network cannot be captured.
        UsageError: there are no batches, or fewer than one point.
        BudgetError: no point can be reached.
        VerificationError: a cut is wrong, or could not be checked.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> batches = [(torch.randn(32, 4), torch.randint(0, 2, (32,)))]
        >>> found = frontier(net, batches[0][0], batches, by="params", points=2)
        >>> [point.cost.params for point in found.points], found.cost.params
        ([51, 9], 58)
    """
    chosen = Recipe.preset(recipe) if isinstance(recipe, str) else recipe or Recipe()
    training = batches if isinstance(batches, Training) else Training(batches)
    context = replace(RecipeContext.of(model), callbacks=callbacks)
    return run_frontier(model, example_inputs, by, points, chosen, training, context, loss_fn)


def run_frontier(
    model: nn.Module,
    example_inputs: ExampleInputs,
    by: Axis,
    points: int,
    recipe: Recipe,
    training: Training,
    context: RecipeContext,
    loss_fn: LossFunction | None = None,
) -> Frontier:
    """Compute a frontier with a context; see :func:`frontier`.

    Args:
        model: on the device of the context; not changed.
        example_inputs: as for :func:`frontier`.
        by: the quantity that is limited.
        points: number of budgets.
        recipe: how scores, plans and cuts are made.
        training: the batches, and how networks are evaluated.
        context: device, callbacks, and measurements if there are any.
        loss_fn: as for :func:`frontier`.
    """
    criterion, untrained = resolve(recipe.criterion), recipe.untrained().with_changes({"steps": 1})
    report_progress(context.callbacks, "tracing", 0, 1)
    modules, widths = left_alone(model, recipe.widths)
    unit = None if recipe.attention == "auto" else recipe.attention
    graph = trace(model, example_inputs, ignore=modules, attention=unit)
    report_progress(context.callbacks, "tracing", 1, 1)
    table = None
    if by == "latency" or widths.multiple_of == "auto":
        options = training.latency or LatencyOptions()
        table = options.tuner(model, graph, example_inputs, context.callbacks, context.interruption).table
        training = replace(training, latency=replace(options, table=table))
    reach = forecast(graph, widths=widths, latency=table).reach[by]
    context = replace(context, graph=graph)
    found, measured = [], context.measured
    for number, share in enumerate(shares(points, reach.least / reach.now), start=1):
        report_progress(context.callbacks, "points", number - 1, points)
        report_note(
            context.callbacks, f"point {number} of {points}: {share:.0%} of the {QUANTITIES[by].title}"
        )
        try:
            result = run_recipe(
                copy_with(model, {}),
                example_inputs,
                Budget(**{by: share}),
                untrained,
                training,
                replace(context, measured=measured),
                criterion=criterion,
                loss_fn=loss_fn,
            )
        except BudgetError as error:  # a time that was predicted, but not measured
            report_note(context.callbacks, f"point {number} is left out: {error}")
            continue
        measured = measured or Measured(fingerprint(model), result.scores, result.curves)
        evaluation = _evaluated(result.model, training, loss_fn, context)
        measured_ms = None if result.latency is None else result.latency.measured_ms
        found.append(FrontierPoint(number, share, result.plan, result.verification, evaluation, measured_ms))
    report_progress(context.callbacks, "points", points, points)
    if measured is None:
        raise BudgetError(f"no point of the frontier can be reached; limit another quantity than {by}")
    time = reach.now / NANOSECONDS if by == "latency" else None
    return Frontier(
        by, _evaluated(model, training, loss_fn, context), graph.cost(), tuple(found), measured, time
    )


def shares(points: int, least: float) -> Iterator[float]:
    """List the shares that the budgets of a frontier allow.

    Args:
        points: their number.
        least: the smallest share that can be reached.

    Raises:
        UsageError: there is no point.

    >>> list(shares(3, least=0.2)), list(shares(1, 0.0))
    ([0.9, 0.56, 0.21], [0.5])
    """
    if points < 1:
        raise UsageError(f"a frontier needs at least one point, not {points}")
    if points == 1:
        yield 0.5
        return
    smallest = max(_SMALLEST, min(least + 0.01, _LARGEST))
    for number in range(points):
        yield round(_LARGEST - (_LARGEST - smallest) * number / (points - 1), 2)


def _evaluated(
    model: nn.Module, training: Training, loss_fn: LossFunction | None, context: RecipeContext
) -> Evaluation:
    batches = training.batches if training.validation is None else training.validation
    return validate(model, batches, training.metric, loss_fn, context)
