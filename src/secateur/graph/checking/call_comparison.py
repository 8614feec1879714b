"""Compare the calls of operators that were recorded: of the two modes, and before and after a cut."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from itertools import zip_longest
from typing import Any

from torch import nn

from secateur.graph.capture.program import ExampleInputs, Program
from secateur.graph.sizes.alignment import nodes_of
from secateur.graph.sizes.recording import Call, Observation, Recorded, numbered, record_modes

# fmt: off
_HARMLESS = {
    "dropout", "feature_dropout", "alpha_dropout", "dropout1d", "dropout2d", "dropout3d", "mul", "div",
    "add", "sub", "rand", "rand_like", "bernoulli", "empty", "new_empty", "new_tensor", "floor",
    "new_zeros", "zeros", "ones", "new_ones", "full", "new_full", "to", "detach", "clone", "tensor",
}
# fmt: on
"""Operators that couple no channels, where at most one tensor with channels goes in."""


class Likeness(Enum):
    """How the operators of the two modes of a network compare."""

    SAME = "the same operators, with the same numbers"
    ALIKE = "the same as far as channels are concerned"
    DIFFERENT = "other operators"


def likeness(
    evaluation: Observation | None, training: Observation | None, in_training: Collection[str]
) -> Likeness:
    """Compare what a network runs in its two modes.

    Args:
        evaluation: what was recorded in evaluation mode.
        training: what was recorded in training mode; of twice as many examples, where it takes two.
        in_training: paths of the modules that were in training mode; an operator of theirs that the mode
            should switch and that the code keeps switched off counts as another one.

    Returns:
        ``SAME`` if only the mode of dropout and batch normalisation differs; ``ALIKE`` if there are besides
        these only operators that couple no channels, such as random masks of whole examples.
    """
    if evaluation is None or training is None or evaluation.outputs != training.outputs:
        return Likeness.DIFFERENT
    if _keeps_off(training, in_training):
        return Likeness.DIFFERENT
    # A number that follows a width shows in a cut of a program that has it.
    following = [[call for call in seen.calls if call.follows_size] for seen in (evaluation, training)]
    if any(call.is_dropout for call in following[1]) or not _equal(*following):
        return Likeness.DIFFERENT
    # Dropout that only one mode has, or that has another probability there, is not that of the other program.
    if not _equal(*([call for call in seen.calls if call.is_dropout] for seen in (evaluation, training))):
        return Likeness.DIFFERENT
    if _equal(*([call for call in seen.calls if not call.counts] for seen in (evaluation, training))):
        return Likeness.SAME
    if _equal(*([call for call in seen.calls if not _is_harmless(call)] for seen in (evaluation, training))):
        return Likeness.ALIKE
    return Likeness.DIFFERENT


def _is_harmless(call: Call) -> bool:
    """Return whether a call couples no channels and computes with no number that may follow a width.

    It couples none if at most one argument has more than one number per example.
    """
    return call.wide <= 1 and call.key[1] in _HARMLESS and not call.numbers


def _keeps_off(training: Observation, in_training: Collection[str]) -> bool:
    """Return whether code keeps an operator switched off that the mode of its module should switch on."""
    return any(call.is_on is False and call.key[0] in in_training for call in training.calls)


def outputs_within(
    evaluation: Observation | None,
    training: Observation | None,
    in_training: Collection[str],
    program: Program,
) -> Mapping[str, str] | None:
    """Find the outputs of training mode among the operators of evaluation mode.

    A detector, for example, returns the numbers of its heads in training and decodes them in evaluation.

    Args:
        evaluation: what was recorded in evaluation mode.
        training: what was recorded in training mode.
        in_training: paths of the modules that were in training mode.
        program: the evaluation-mode program.

    Returns:
        For each output of training mode, where it is, and the operator of the program that computes it;
        ``None`` if training runs other operators, or with other numbers, or returns anything else.
    """
    if evaluation is None or training is None or _keeps_off(training, in_training):
        return None
    left, same = iter(evaluation.calls), dict[tuple[str, str, int], Call]()
    for call, origin in numbered(training.calls).items():
        if call.counts:
            continue
        found = next((other for other in left if _same(other, call)), None)
        if found is None:
            return None
        same[origin] = found
    nodes = nodes_of(evaluation, program)
    names = {
        path: nodes[same[origin]]
        for path, (origin, place) in training.outputs
        if place == 0 and origin in same and same[origin] in nodes
    }
    return names if len(names) == len(training.outputs) else None


def _same(one: Call, other: Call) -> bool:
    """Return whether two calls are of one operator in one module, with the same numbers and sizes."""
    return one.key == other.key and one.numbers == other.numbers


def _equal(one: Sequence[Call], other: Sequence[Call]) -> bool:
    return len(one) == len(other) and all(
        left.key[:2] == right.key[:2]
        and left.numbers == right.numbers
        and _of_one_size(left.key[2], right.key[2])
        for left, right in zip(one, other, strict=True)
    )


def _of_one_size(one: Sequence[int], other: Sequence[int]) -> bool:
    """Return whether shapes are equal but for the number of examples, which may have been doubled."""
    changed = [pair for pair in zip(one, other, strict=False) if pair[0] != pair[1]]
    return len(one) == len(other) and (
        not changed or (len(changed) == 1 and changed[0][1] == 2 * changed[0][0])
    )


def changed_factor(before: Observation | None, after: Observation | None) -> str | None:
    """Find an operator that gets another number, such as a scale, after channels were removed.

    Args:
        before: what was recorded of the network.
        after: what was recorded of it without these channels, in the same mode.

    Returns:
        The first such operator, with its module; ``None`` if there is none, or the operators differ.
    """
    if before is None or after is None:
        return None
    pairs = list(zip(before.calls, after.calls, strict=False))
    if len(before.calls) != len(after.calls) or any(one.key[:2] != other.key[:2] for one, other in pairs):
        return None
    return next((_place(one) for one, other in pairs if one.numbers != other.numbers), None)


def hidden_change(model: nn.Module, inputs: ExampleInputs, before: Recorded, *, fewer: bool) -> str | None:
    """Find a number that no output may show and that is another one after channels were removed.

    Args:
        model: the network without these channels; not changed.
        inputs: what ``before`` was recorded with.
        before: what was recorded of the whole network by :func:`record_modes`; the same modes are recorded.
        fewer: whether residual branches are gone, with their operators.

    Returns:
        The change in words, with operator and module; ``None`` if there is none.
    """
    for training, seen in before.items():
        (after,) = record_modes(model, inputs, [training]).values()
        place = _changed_switch(seen, after, fewer=fewer)
        if place:
            return f"{'in training mode, ' if training else ''}code changes {place} with the width"
    return None


def _changed_switch(before: Observation | None, after: Observation | None, *, fewer: bool) -> str | None:
    """Find the first dropout or random operator whose parameters changed after a cut.

    What code computes from a width may not remember it, as a product of a float with it does not. In
    evaluation mode dropout hides its numbers; truth values and normalisations hide those of what was drawn;
    and a limit shows only where a value is beyond it.

    Returns:
        The first operator that gets another number, is switched off or on, or is gone, with its module;
        ``None`` if there is none.
    """
    if before is None or after is None:
        return None
    if fewer:
        # Zeros that take the place of a branch are made of numbers alone, so only a call's own ones compare.
        left = iter([_comparison_key(call, call.numbers) for call in before.calls if call.numbers])
        others = [call for call in after.calls if call.may_hide and call.numbers]
        # Each is looked for behind the one that was found last.
        return next(
            (_place(call) for call in others if _comparison_key(call, call.numbers) not in left), None
        )
    ones, others = (
        [call for call in seen.calls if call.may_hide and (before.hides or not call.follows_openly)]
        for seen in (before, after)
    )
    for one, other in zip_longest(ones, others):
        found = one or other
        if (
            one is None
            or other is None
            or _comparison_key(one, one.hidden) != _comparison_key(other, other.hidden)
        ):
            return _place(found)
    return None


def _comparison_key(call: Call, numbers: tuple[float | bytes, ...]) -> tuple[Any, ...]:
    """Return the key by which two calls are compared: module and operator, numbers, and the mode."""
    return call.key[:2], numbers, call.is_on


def _place(call: Call) -> str:
    path, name, _ = call.key
    return f"{name} in '{path}'" if path else name
