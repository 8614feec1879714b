"""Run torch-pruning 1.6.1 as its own examples do: one pruner, many small steps, until the cost fits."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sec
from benchmarks.setting import Setting
from secateur.graph import Role

STEPS = 40
"""Steps from the whole network to nothing; its examples take up to 400, which changes little."""


def torch_pruning(setting: Setting, criterion: str) -> Callable[[float], nn.Module]:
    """Prepare a copy that is cut step by step.

    Args:
        setting: the network, and the images for gradients.
        criterion: ``"taylor"``, with the gradient of all the images before each step, or ``"group norm"``.

    Returns:
        A function that returns, for a share of the MACs, a copy of the network after the first step that
        needs no more. Call it with descending shares, since the steps on the way are the same for all.
    """
    model, x = copy.deepcopy(setting.model), setting.images[0][:1]
    pruner = pruner_of(model, x, criterion, _left_alone(setting, model))
    whole = sec.cost(setting.model, x).macs

    def gradients() -> None:
        if criterion == "taylor":
            for inputs, targets in setting.batches:
                F.cross_entropy(model(inputs), targets, reduction="sum").backward()

    def cut(share: float) -> nn.Module:
        step_until(pruner, lambda: sec.cost(model, x).macs <= share * whole, gradients)
        return copy.deepcopy(model)

    return cut


def pruner_of(model: nn.Module, x: Tensor, criterion: str, left_alone: Sequence[nn.Module]) -> Any:
    """Make a pruner of all layers together, by small steps.

    Args:
        model: cut in place by each step.
        x: one example.
        criterion: as for :func:`torch_pruning`.
        left_alone: layers whose outputs all stay.
    """
    tp = imported()
    importance = {
        "taylor": tp.importance.GroupTaylorImportance,
        "group norm": tp.importance.GroupMagnitudeImportance,
    }[criterion]()
    return tp.pruner.BasePruner(
        model,
        x,
        importance=importance,
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=STEPS,
        ignored_layers=list(left_alone),
    )


def step_until(pruner: Any, done: Callable[[], bool], gradients: Callable[[], None]) -> None:
    """Take steps of a pruner until the network is small enough.

    Args:
        pruner: of the network.
        done: whether it is small enough.
        gradients: called before each step, with no gradients left; computes those that the criterion reads.
    """
    while not done():
        pruner.model.zero_grad()
        gradients()
        pruner.step()
    pruner.model.zero_grad()


def imported() -> Any:
    """Import torch-pruning.

    Raises:
        SystemExit: it is not installed.
    """
    try:
        return importlib.import_module("torch_pruning")
    except ImportError:
        raise SystemExit("torch-pruning is not installed; it is in the extra 'bench'") from None


def _left_alone(setting: Setting, model: nn.Module) -> list[nn.Module]:
    """Return the layers whose outputs all stay: the classifier, and layers that write a stream left alone."""
    cut = [group for group in setting.graph.prunable if group.name not in setting.left_alone]
    inside = {member.module for group in cut for member in group.roles(Role.PRODUCER)}
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and name not in inside
    ]
