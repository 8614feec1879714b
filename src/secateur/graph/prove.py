"""Propose and prove: every group is cut on trial before it may be offered to anyone."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

from secateur.graph.capture import ExampleInputs, call_arguments, doubled, mode_of
from secateur.graph.channel_graph import ChannelGraph, Keep
from secateur.graph.cutting import by_tensor, copy_with, cut_tensor, named_tensors, positions_left
from secateur.graph.groups import Group, Role
from secateur.graph.masked import run_masked
from secateur.precision import full_precision

TOLERANCE = 1e-4
"""Largest difference, relative to the largest output, at which two float32 results count as equal."""


def prove(
    model: nn.Module, graph: ChannelGraph, inputs: ExampleInputs, *, apart: bool = True
) -> dict[str, str]:
    """Cuts every prunable group on trial and holds the result against the masked original.

    All groups are tried at once; only if that fails are they tried apart.

    Args:
        model: the network; not changed.
        graph: its channel graph.
        inputs: example inputs.
        apart: find out which groups fail; otherwise all count as failed together.

    Returns:
        For the producing tensors of groups that failed, the reason; empty if all is well.
    """
    trial = _Trial(model, graph, inputs)
    groups = [group for group in graph.prunable if group.channels > 1]
    reason = trial.run(groups) if groups else None
    if reason is None:
        return {}
    failed = _bisect(trial, groups, reason) if apart else [(group, reason) for group in groups]
    return {
        member.tensor: f"could not be proved: {reason}"
        for group, reason in failed
        for member in group.roles(Role.PRODUCER)
    }


def _bisect(trial: _Trial, groups: Sequence[Group], reason: str) -> list[tuple[Group, str]]:
    """The groups that fail, found with few trials when few fail; together they do, for a reason."""
    if len(groups) == 1:
        return [(groups[0], reason)]
    half = len(groups) // 2
    failed: list[tuple[Group, str]] = []
    for part in (groups[:half], groups[half:]):
        found = trial.run(part)
        if found is not None:
            failed += _bisect(trial, part, found)
    # Where each half passes alone, what fails is the two together, so the later half is given up.
    return failed or [(group, reason) for group in groups[half:]]


class _Trial:
    """One network with scrambled constants, to be cut again and again."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, inputs: ExampleInputs) -> None:
        self._model = model
        self._graph = graph
        self._inputs = inputs
        self._tensors = scrambled(named_tensors(model))

    @full_precision()
    def run(self, groups: Sequence[Group]) -> str | None:
        """Cuts about half the channels of some groups, of each group another share.

        With one share for all, sizes that only fit together by accident would pass.

        Returns:
            Why the cut is wrong, ``None`` if it is right.
        """
        generator = np.random.default_rng(0)
        keep = {group.name: _some(generator, group.channels) for group in groups}
        plan = Keep(keep)
        after = self._graph.after(plan)
        cuts = by_tensor(positions_left(self._graph, after))
        tensors = {
            name: cut_tensor(tensor, cuts[name]) if name in cuts else tensor.detach()
            for name, tensor in self._tensors.items()
        }
        attributes = self._graph.attributes_after(plan)
        try:
            cut = copy_with(self._model, tensors, attributes)
            found = evaluate(cut, self._inputs)
        except Exception as error:  # noqa: BLE001 - the user's code may fail in any way
            return f"the forward pass fails ({_first_line(error)})"
        expected = run_masked(self._graph.wiring, after.removed, self._tensors, self._inputs)
        difference = largest_difference(expected, found)
        if not difference <= TOLERANCE:
            return f"outputs differ from the masked original (by {difference:.1e} of the largest)"
        return self._training_fails(cut)

    def _training_fails(self, cut: nn.Module) -> str | None:
        """Why the training-mode forward pass of a cut copy fails, ``None`` if it runs."""
        error = _training_error(cut, self._inputs)
        if error is None or _training_error(self._model, self._inputs) is not None:
            return None
        return f"the training-mode forward pass fails ({error})"


def _some(generator: np.random.Generator, channels: int) -> list[int]:
    """About half of a number of channels, at least one, never all.

    What is kept never maps onto itself where channels change places in pairs (neighbours, halves, ends):
    such a coupling could be overlooked. An odd number of them cannot; where one channel is its own partner,
    it is the middle one.
    """
    count = min(max(1, round(channels * generator.uniform(0.3, 0.7))), channels - 1)
    if channels % 2 == 0:
        count |= 1
    while True:
        kept = np.sort(generator.permutation(channels)[:count])
        if not np.array_equal(channels - 1 - kept[::-1], kept):
            some: list[int] = kept.tolist()
            return some


def scrambled(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replaces tensors that hold one value throughout by random ones, so that no wrong cut hides.

    Fresh scales of one, shifts of zero, and layer scales of a millionth would all hide errors.

    Args:
        tensors: parameters and buffers by name; not changed.

    Returns:
        The same names, with new tensors where the old ones were constant.
    """
    generator = torch.Generator().manual_seed(0)
    result = {}
    for name, tensor in tensors.items():
        data = tensor.detach()
        if data.numel() > 1 and data.is_floating_point() and _constant(data):
            level = float(data.flatten()[0])
            noise = torch.rand(data.shape, generator=generator) + 0.5
            drawn = noise * (math.copysign(max(abs(level), 0.1), level)) if level else (noise - 1.0) * 0.2
            data = drawn.to(data)
        result[name] = data
    return result


def _constant(data: Tensor) -> bool:
    flat = data.reshape(-1)
    return bool((flat[:64] == flat[0]).all()) and bool((flat == flat[0]).all())


def evaluate(model: nn.Module, inputs: ExampleInputs) -> tuple[Any, ...]:
    """The flat outputs of a network in evaluation mode; its modes are restored."""
    args, kwargs = call_arguments(inputs)
    args, kwargs = tree_map_only(Tensor, torch.clone, (args, kwargs))
    with mode_of(model, training=False), torch.no_grad():
        return tuple(tree_leaves(model(*args, **kwargs)))


def largest_difference(expected: Sequence[Any], found: Sequence[Any]) -> float:
    """Largest absolute difference of two lists of outputs, relative to the largest expected value.

    Args:
        expected: the outputs to hold against.
        found: the outputs in question.

    Returns:
        The relative difference; infinite if shapes differ or a value is not finite.
    """
    worst = 0.0
    if len(expected) != len(found):
        return math.inf
    for want, have in zip(expected, found, strict=True):
        if not isinstance(want, Tensor):
            continue
        if not isinstance(have, Tensor) or want.shape != have.shape:
            return math.inf
        if want.numel() == 0:
            continue
        want, have = want.double(), have.double()
        scale = float(want.abs().max())
        gap = float((want - have).abs().max())
        if not math.isfinite(gap):
            return math.inf
        worst = max(worst, gap / scale if scale > 0 else (0.0 if gap == 0 else math.inf))
    return worst


def _training_error(model: nn.Module, inputs: ExampleInputs) -> str | None:
    """Runs the training-mode forward pass on shapes alone and reports what goes wrong."""
    error = _run_on_shapes(model, inputs, lambda tensor: tensor.to("meta"), contextlib.nullcontext())
    if error is None:
        return None
    # Code that makes tensors on a device of its own fails on the meta device; fake tensors follow it.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    return _run_on_shapes(model, inputs, mode.from_tensor, mode)


def _run_on_shapes(
    model: nn.Module,
    inputs: ExampleInputs,
    to_shape: Callable[[Tensor], Tensor],
    mode: contextlib.AbstractContextManager[Any],
) -> str | None:
    shapes = {name: to_shape(tensor.detach()) for name, tensor in named_tensors(model).items()}
    args, kwargs = tree_map_only(Tensor, to_shape, call_arguments(doubled(inputs)))
    state = torch.get_rng_state()
    try:
        copied = copy_with(model, shapes, ())
        with mode, torch.no_grad(), mode_of(copied, training=True):
            copied(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - the user's code may fail in any way
        return _first_line(error)
    finally:
        torch.set_rng_state(state)
    return None


def _first_line(error: Exception) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}"
