"""The one call: trace, score, plan, cut, verify."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from secateur.batches import refuse_one_shot
from secateur.budget import Allocation, Budget, WidthCurves, Widths, plan_within
from secateur.criteria import Criterion, Scores, score
from secateur.errors import UsageError
from secateur.graph import Cost, ExampleInputs, trace
from secateur.graph.capture import beside, owned
from secateur.optimizer_state import check_optimizer
from secateur.plan import PruningPlan
from secateur.recipes.cutting import cut
from secateur.recipes.latency_tuner import LatencyFit, LatencyOptions
from secateur.recipes.ranking import CURVE_BATCHES, measured_curves
from secateur.training.events import Listener, silent
from secateur.training.losses import with_auxiliaries
from secateur.verify import Verification


@dataclass(frozen=True)
class PruneResult:
    """What came of pruning.

    Attributes:
        model: the smaller network.
        plan: what was removed.
        verification: how it compares with the original in which those channels are masked.
        cost_before: of the original.
        cost_after: of the smaller network.
        scores: what the criterion said of the whole network, raw.
        curves: what each width of its groups does, if that was measured.
        in_time: what was measured, where the budget limits latency.
    """

    model: nn.Module
    plan: PruningPlan
    verification: Verification
    cost_before: Cost
    cost_after: Cost
    scores: Scores
    curves: WidthCurves | None = None
    in_time: LatencyFit | None = None

    def __str__(self) -> str:
        return f"{self.plan}\n{self.verification}"


def prune(
    model: nn.Module,
    example_inputs: ExampleInputs,
    budget: Budget,
    criterion: str | Criterion = "taylor",
    batches: Iterable[Any] | None = None,
    loss_fn: Callable[..., Tensor] | None = None,
    *,
    ignore: Sequence[str] = (),
    only: Sequence[str] = (),
    normalize: str = "l2",
    allocate: Allocation = "global",
    round_to: int | Literal["auto"] = 1,
    min_channels: int = 1,
    timing: LatencyOptions | None = None,
    optimizer: Optimizer | None = None,
    inplace: bool = False,
    listener: Listener = silent,
) -> PruneResult:
    """Make a trained network smaller by whole channels, and verify the cut.

    Nothing is trained: fine-tune the result, or use :func:`prune_iteratively`.

    Args:
        model: any network that can be exported.
        example_inputs: a tensor, a tuple of arguments or a dict of named ones, batch first.
        budget: what may remain. A limit on latency holds for a forward pass on ``example_inputs`` on this
            device: the network's operators are measured (once; they are kept), and the plan is corrected
            until the clock agrees.
        criterion: the rule that values a channel, by name such as ``"taylor"``, or one of your own.
        batches: pairs of inputs and targets, for criteria that look at data.
        loss_fn: ``loss_fn(outputs, targets)``, for criteria that need gradients; cross-entropy if not given.
        ignore: modules whose channels all stay.
        only: groups or modules to cut, by name or pattern, if not all.
        normalize: how scores are made comparable between groups.
        allocate: ``"global"`` ranks the channels of all groups together, ``"uniform"`` takes the same
            share from every group, ``"curves"`` measures on the batches what each width of each group
            does to the outputs and takes the least damage.
        round_to: widths that stay are multiples of this; ``"auto"`` for widths that this device runs well.
        min_channels: least channels left in a group.
        timing: how latency is measured, if not in the ordinary way.
        optimizer: over parameters of ``model``, or some of them. Its state is cut alike, so that training of
            the smaller network can go on with it.
        inplace: cut ``model`` itself, not a copy.
        listener: hears how far the measuring of latency is.

    Returns:
        The smaller network, the plan, its verification, and the costs.

    Raises:
        TraceError: the network cannot be captured.
        BudgetError: the budget cannot be met; the message says what can.
        UsageError: ``allocate`` asks for batches that are not there, or the optimizer holds no parameter of
            ``model``.
        VerificationError: the smaller network computes something else; ``model`` and the optimizer are left
            as they were.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> result = prune(model, torch.randn(2, 3, 9, 9), Budget(channels=0.5), criterion="magnitude")
    >>> result.model[0].out_channels, result.verification.ok
    (4, True)
    """
    check_optimizer(optimizer, model)
    example_inputs = owned(beside(model, example_inputs))
    graph = trace(model, example_inputs, ignore=ignore)
    if allocate == "curves":
        if batches is None:
            raise UsageError("allocate='curves' measures widths on data; pass batches=")
        refuse_one_shot(batches)
    scores = score(model, graph, criterion, batches, loss_fn or with_auxiliaries(cross_entropy))
    curves = None
    if allocate == "curves":
        curves = measured_curves(model, graph, scores, islice(batches or (), CURVE_BATCHES))
    pace = None
    if budget.latency is not None or round_to == "auto":
        pace = (timing or LatencyOptions()).tuner(model, graph, example_inputs, listener)

    def plan_for(limits: Mapping[str, int]) -> PruningPlan:
        return plan_within(
            graph,
            scores if curves is None else curves,
            limits,
            latency=pace.table if pace else None,
            normalize=normalize,
            allocation=allocate,
            widths=Widths(multiple_of=round_to, min_channels=min_channels, only=only),
        )

    limits = budget.amounts(graph, pace.table if pace else None)
    in_time = pace.plan(budget.latency, limits, plan_for, model) if pace and budget.latency else None
    plan = in_time.plan if in_time else plan_for(limits)
    smaller, verification = cut(model, plan, example_inputs, optimizer, inplace=inplace)
    return PruneResult(
        smaller, plan, verification, plan.cost_before, plan.cost_after, scores, curves, in_time
    )
