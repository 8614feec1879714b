"""Derive the training-mode pass from the evaluation-mode pass, where both run the same operators."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
from torch import nn

from secateur.graph.capture.nodes import module_path, named_arguments
from secateur.graph.capture.program import ExampleInputs, Program, mode_of
from secateur.graph.checking.compare import TOLERANCE
from secateur.graph.checking.execution import judge, run_network, run_reference
from secateur.graph.checking.probe import random_for_constant
from secateur.graph.cutting.substitute import substituted
from secateur.graph.cutting.tensors import named_tensors
from secateur.graph.wiring import Pass
from secateur.untouched import untouched

_ROUNDED = 1e-2
"""Relative difference of two training-mode passes with the same operators, where they round to float32."""

_FLAGS = {"training", "train", "use_input_stats"}
"""Arguments of operators that say whether the network is in training mode."""


def modules_in_training(model: nn.Module) -> frozenset[str]:
    """Find the modules that ``model.train()`` puts in training mode; some keep a part of them out of it."""
    with mode_of(model, training=True):
        return frozenset(path for path, module in model.named_modules() if module.training)


def changed_by_mode(model: nn.Module) -> str | None:
    """Find a parameter that ``train()`` or ``eval()`` of the network writes to, as merged adapters do.

    Args:
        model: the network; left as it was.

    Returns:
        Name of the first such parameter, if there is one.
    """
    if all(type(module).train is nn.Module.train for module in model.modules()):
        return None  # nothing but flags changes
    with untouched(model) as notes:
        for training in (True, False):
            model.train(training)
    written = {id(tensor) for tensor in notes.written}
    return next((name for name, item in model.named_parameters() if id(item) in written), None)


def in_training(forward: Pass, paths: Collection[str]) -> Pass:
    """Make a pass with dropout and batch normalisation as they are in training mode.

    Args:
        forward: the evaluation-mode pass.
        paths: the modules that are in training mode.

    Returns:
        The training-mode pass, with the same operators by the same names.
    """
    flags: dict[str, int] = {}
    for node in forward.program.graph.nodes:
        if module_path(node) not in paths:
            continue
        for place, (name, value) in enumerate(named_arguments(node).items()):
            if name in _FLAGS and value is False:
                flags[node.name] = place
    return replace(forward, program=replace(forward.program, training=True, derived=True), flags=flags)


def derivable(model: nn.Module, program: Program, inputs: ExampleInputs) -> bool:
    """Return whether the training-mode pass that is made from the evaluation-mode one gives right numbers.

    Random values take the place of constant tensors, which may hide a branch.

    Args:
        model: the network; not changed.
        program: the evaluation-mode program.
        inputs: what it was captured with.
    """
    forward = in_training(Pass(program, (), ()), modules_in_training(model))
    tensors = named_tensors(model)
    drawn = random_for_constant(tensors)
    try:
        with substituted(model, drawn):
            found = run_network(model, inputs, training=True, random=True)
        expected = run_reference(forward, np.zeros(0, dtype=np.bool_), {**tensors, **drawn}, inputs)
    except Exception:  # noqa: BLE001 - the user's code may fail in any way
        return False
    # A branch that is dropped at random may hardly count beside the others.
    tolerance = _ROUNDED if found.rounded or expected.rounded else TOLERANCE
    return judge(expected, found, lambda _: expected, tolerance).ok
