"""Prune a network in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from secateur.arguments import check_arguments
from secateur.batches import LossFunction
from secateur.budget import Budget
from secateur.criteria import Criterion, resolve
from secateur.graph import ExampleInputs
from secateur.graph.capture.wrappers import refuse_wrapped
from secateur.graph.cutting.tensors import copy_with
from secateur.optimizer_state import check_optimizer
from secateur.recipes.callbacks import Callback
from secateur.recipes.context import RecipeContext, Training
from secateur.recipes.recipe import Recipe
from secateur.recipes.result import PruneResult
from secateur.recipes.runner import run_recipe
from secateur.training.evaluate import Batches


def prune(
    model: nn.Module,
    example_inputs: ExampleInputs,
    budget: Budget,
    criterion: str | Criterion | None = None,
    batches: Batches | Training | None = None,
    loss_fn: LossFunction | None = None,
    recipe: Recipe | str | None = None,
    callbacks: Sequence[Callback] = (),
) -> PruneResult:
    """Make a trained network smaller by whole channels, and verify each cut.

    The network is copied; the copy is cut and trained, on the device and in the precision of the network.
    With ``Training(optimizer=...)``, which contains the network's own parameters, the network itself is cut
    and trained.

    Args:
        model: any network that can be exported.
        example_inputs: a tensor, a tuple of arguments or a dict of named ones, batch first.
        budget: what may remain. A limit on latency is for a forward pass on ``example_inputs`` on this
            device: the network's operators are measured (once; the times are kept), and the plan is
            corrected until the measured time is within the limit.
        criterion: the rule that scores a channel, by name such as ``"taylor"``, or your own criterion;
            that of the recipe if not given.
        batches: pairs of inputs and targets, or mappings of named arguments with the labels among them; or
            a :class:`secateur.recipes.Training`, with validation data, a metric, an optimizer or a training
            loop.
        loss_fn: ``loss_fn(outputs, targets)``, the mean loss of a batch; cross-entropy if not given. For
            batches that are mappings it is ``loss_fn(outputs, batch)``, or the ``loss`` that the network
            returns if not given. Outputs are distilled only with the cross-entropy of pairs, since others may
            not be class scores.
        recipe: what to do, as a :class:`Recipe` or the name of a preset. If not given, ``"one-shot"``: rank,
            cut and verify, without any training, by ``"taylor"`` if there are batches and by ``"magnitude"``
            otherwise.
        callbacks: receive reports while it runs.

    Returns:
        The smaller network, the plan, and how it was verified.

    Raises:
        TraceError: the network cannot be captured.
        BudgetError: the budget cannot be met; the message gives the least possible amounts.
        UsageError: the recipe needs batches that are not given, or the optimizer holds no parameter of
            ``model``.
        VerificationError: a cut is wrong, or could not be checked; the network is restored to before that
            cut.
        TrainingError: the loss is not finite.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> result = prune(model, torch.randn(2, 3, 9, 9), Budget(channels=0.5))
        >>> result.model[0].out_channels, result.ok
        (4, True)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> batches = [(torch.randn(16, 4), torch.randint(0, 2, (16,)))]
        >>> recipe = Recipe.preset("default", finetune={"epochs": 1})
        >>> print(prune(model, batches[0][0], Budget(macs=0.5), batches=batches, recipe=recipe))
        removed 4 of 8 prunable channels in 1 cut
        MACs: 48 to 24 (50.0%)
        parameters: 58 to 30 (51.7%)
        ...
    """
    check_arguments(model=model, budget=budget)
    training = batches if isinstance(batches, Training) else Training(batches)
    if recipe is None:
        recipe = Recipe.preset("one-shot")
        given = training.batches is not None or training.calibration is not None
        criterion = criterion or ("taylor" if given else "magnitude")
    elif isinstance(recipe, str):
        recipe = Recipe.preset(recipe)
    refuse_wrapped(model)
    check_optimizer(training.optimizer, model)
    return run_recipe(
        model if training.optimizer is not None else copy_with(model, {}),
        example_inputs,
        budget,
        recipe,
        training,
        replace(RecipeContext.of(model), callbacks=callbacks),
        criterion=None if criterion is None else resolve(criterion),
        loss_fn=loss_fn,
    )
