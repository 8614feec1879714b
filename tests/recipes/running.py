"""Recipes run in place, as jobs run them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

import secateur as sec
from secateur.recipes import Measured, PruneResult, Recipe, RecipeContext, Training, run_recipe
from secateur.training.context import save_nothing
from secateur.training.evaluate import Evaluation
from secateur.training.interrupt import Interruption
from secateur.training.resume import Journal


def in_place(
    net: nn.Module,
    example: Any,
    budget: sec.Budget,
    batches: Any,
    recipe: Recipe,
    *,
    loss_fn: Callable[..., Any] | None = None,
    callbacks: Sequence[sec.Callback] = (),
    save: Callable[[str, Evaluation | None], object] = save_nothing,
    interruption: Interruption | None = None,
    measured: Measured | None = None,
    journal: Journal | None = None,
    **training: Any,
) -> PruneResult:
    context = replace(
        RecipeContext.of(net),
        callbacks=callbacks,
        interruption=interruption or Interruption(),
        save=save,
        measured=measured,
        journal=journal or Journal(),
    )
    return run_recipe(net, example, budget, recipe, Training(batches, **training), context, loss_fn=loss_fn)
