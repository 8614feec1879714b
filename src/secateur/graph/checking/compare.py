"""Compare outputs slice by slice, each on its own scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from secateur.outputs import parts_of

TOLERANCE = 1e-8
"""Largest difference, relative to the largest value of a slice, at which two float64 results are equal."""

STILL = 2.0**-34
"""Relative change below which a float64 value counts as constant."""

NOISE_FACTOR = 32.0
"""How many times the measured rounding noise of a slice is allowed, where that is more."""

MOST_NOISE = 1e-3
"""Largest tolerance that still tells something; a slice with more noise than that cannot be checked."""


BUFFER = " (buffer"
"""How the path of a tensor begins that the network writes to and does not return."""


@dataclass(frozen=True)
class Outputs:
    """The outputs of one run.

    Attributes:
        leaves: tensors and plain values, in the order in which the output holds them.
        paths: where each leaf is in the output, such as ``"['scores'][0]"``.
        rounded: whether something was computed in less than float64.
        without_gradients: why a training-mode pass was run without gradients, if it was.
    """

    leaves: tuple[Any, ...]
    paths: tuple[str, ...]
    rounded: bool = False
    without_gradients: str | None = None

    @classmethod
    def of(cls, output: Any, *, rounded: bool = False) -> Outputs:
        """Flatten what a network returned."""
        found = parts_of(output)
        leaves = (_kept(leaf.detach()) if isinstance(leaf, Tensor) else leaf for leaf in found.leaves)
        return cls(tuple(leaves), found.paths, rounded)

    def with_buffers(self, buffers: Mapping[str, Tensor]) -> Outputs:
        """Add buffers to the outputs, under their names."""
        leaves = (_kept(tensor.detach()) for tensor in buffers.values())
        paths = tuple(f"{BUFFER} '{name}')" for name in buffers)
        return replace(self, leaves=(*self.leaves, *leaves), paths=(*self.paths, *paths))


def _kept(tensor: Tensor) -> Tensor:
    """Make a dense copy, which does not follow what later passes write into the memory of the tensor."""
    return tensor.clone() if tensor.layout is torch.strided else tensor.to_dense()


@dataclass(frozen=True)
class Excess:
    """The worst slice of a tensor: the largest error relative to its tolerance.

    Attributes:
        times: its difference as a multiple of its tolerance.
        error: its relative difference.
        tolerance: its largest relative difference.
        noisy: whether a slice of the tensor has too much noise to be checked.
        only_noisy: whether all have.
    """

    times: float
    error: float
    tolerance: float
    noisy: bool
    only_noisy: bool


@dataclass(frozen=True)
class Slices:
    """The differences of one output tensor, for every index of one of its dimensions.

    Attributes:
        path: where the tensor is in the output.
        dim: the dimension.
        gap: largest absolute difference of each slice.
        scale: how far the expected values of each slice move; their size where they are constant.
        size: largest absolute expected value of each slice.
    """

    path: str
    dim: int
    gap: Tensor
    scale: Tensor
    size: Tensor

    @property
    def relative(self) -> Tensor:
        """Compute the difference of each slice, relative to its scale."""
        return _ratio(self.gap, self.scale)

    def coarse(self, share: float) -> Slices:
        """Ignore differences below a share of the usual size of a slice, which are rounding in float32."""
        return replace(self, gap=torch.where(self.gap <= share * self.size.median(), 0.0, self.gap))

    def exceeding(self, noise: Tensor | None, tolerance: float) -> Excess:
        """Find the slice that comes nearest to its tolerance, or exceeds it most.

        Args:
            noise: rounding noise of each slice; none where it was not measured.
            tolerance: relative to the scale of a slice; noise makes it larger.
        """
        allowed = torch.full_like(self.scale, tolerance)
        if noise is not None:
            # A slice of few values may show no noise by chance: it has at least that of its neighbours, which
            # are made of numbers as large, however small its own are.
            usual = _ratio(noise, self.size).median().clamp(min=2.0**-52)
            noise = torch.maximum(noise, usual * self.size).clamp(min=float(noise.median()))
            allowed = torch.maximum(allowed, NOISE_FACTOR * _ratio(noise, self.scale))
        times = _ratio(self.relative, allowed)
        # A slice whose tolerance is this wide may be wrong without a sign.
        noisy = (times <= 1) & (allowed > max(MOST_NOISE, tolerance))
        worst = int(times.masked_fill(noisy, -1.0).argmax())
        return Excess(
            float(times[worst]),
            float(self.relative[worst]),
            float(allowed[worst]),
            bool(noisy.any()),
            bool(noisy.all()),
        )


def differences(expected: Outputs, found: Outputs, others: Sequence[Outputs] = ()) -> list[Slices] | str:
    """Compare two outputs.

    Every tensor is judged along its last dimension and along dimension 1 (channels), so that small values
    beside large ones count. The scale of a slice is how far it moves between examples and inputs, so that a
    large constant hides nothing. Integers, other values, shapes and the names of dictionary entries must be
    equal; so must the places of infinities and NaN.

    Args:
        expected: the outputs of the reference.
        found: the outputs in question.
        others: what the reference returns for other inputs.

    Returns:
        The differences, or in words what makes the outputs incomparable.
    """
    if expected.paths != found.paths:
        return f"the output has other parts ({_short(found.paths)} instead of {_short(expected.paths)})"
    slices: list[Slices] = []
    for number, (path, leaf, have) in enumerate(
        zip(expected.paths, expected.leaves, found.leaves, strict=True)
    ):
        want, place = leaf, f"output{path}"
        if not isinstance(want, Tensor):
            if not same_value(want, have):
                return f"{place} is {have!r} instead of {want!r}"
            continue
        if not isinstance(have, Tensor) or want.shape != have.shape:
            shape = tuple(have.shape) if isinstance(have, Tensor) else type(have).__name__
            return f"{place} has shape {shape} instead of {tuple(want.shape)}"
        if want.numel() == 0:
            continue
        if not want.is_floating_point() and not want.is_complex():
            if not torch.equal(want, have.to(want)):
                return f"{place} ({want.dtype}) has other values"
            continue
        want, have = _real(want), _real(have.to(want.device))
        odd = ~torch.isfinite(want)
        if not torch.equal(odd, ~torch.isfinite(have)):
            return f"{place} is infinite or NaN at other positions"
        if odd.any():
            want, have = want.masked_fill(odd, 0.0), have.masked_fill(odd, 0.0)
        moves = [_real(item) for item in (other.leaves[number] for other in others) if _fits(item, leaf)]
        slices += [_along(path, dim, want, have, moves) for dim in _dims(want)]
    return slices


def _fits(one: Any, other: Any) -> bool:
    return isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape


def constant_parts(draws: Sequence[Outputs]) -> list[str]:
    """Find the output tensors that did not depend on the inputs.

    Args:
        draws: the outputs for several inputs.

    Returns:
        Paths of the tensors that were equal for all inputs; with a single input, of those that hold one
        value throughout.
    """
    found = []
    for number, path in enumerate(draws[0].paths):
        leaves = [draw.leaves[number] for draw in draws]
        first = leaves[0]
        if not isinstance(first, Tensor) or first.numel() == 0:
            continue
        # The same input twice tells nothing: a batch of other size holds other examples.
        others = [leaf for leaf in leaves[1:] if isinstance(leaf, Tensor) and leaf.shape == first.shape]
        if others:
            constant = all(_close(first, other) for other in others)
        else:
            constant = first.numel() > 1 and _close(first, first.flatten()[0].expand_as(first))
        if constant:
            found.append(f"output{path}")
    return found


def _close(one: Tensor, other: Tensor) -> bool:
    if not one.is_floating_point() and not one.is_complex():
        return torch.equal(one, other)
    one, other = _real(one), _real(other)
    odd = ~torch.isfinite(one)
    if not torch.equal(odd, ~torch.isfinite(other)):
        return False
    gap = (one - other).masked_fill(odd, 0.0).abs().max()
    return bool(gap <= STILL * one.masked_fill(odd, 0.0).abs().max())


def _along(path: str, dim: int, want: Tensor, have: Tensor, others: Sequence[Tensor]) -> Slices:
    rest = [other for other in range(want.dim()) if other != dim]

    def largest(item: Tensor) -> Tensor:
        """Find the largest absolute value of each slice, without a copy of the tensor."""
        found: Tensor = torch.linalg.vector_norm(item, math.inf, rest) if rest else item.abs()
        return found

    size = largest(want)
    change = torch.zeros_like(size)
    if want.shape[0] > 1 and dim > 0:
        change = largest(want.amax(0, keepdim=True) - want.amin(0, keepdim=True))
    for other in others:
        change = torch.maximum(change, largest(want - other.to(want).nan_to_num(0.0, 0.0, 0.0)))
    # A slice that does not vary is compared relative to its own size; so is every slice if nothing shows how
    # it varies.
    still = (
        (change <= STILL * size) if others or want.shape[0] > 1 else torch.ones_like(size, dtype=torch.bool)
    )
    scale = torch.where(still, size, change)
    # A slice that is zero throughout has the scale of the whole.
    scale = torch.where(scale == 0, size.max(), scale)
    return Slices(path, dim, largest(want - have), scale, size)


def _dims(tensor: Tensor) -> list[int]:
    """Choose the dimensions along which a tensor is compared: the last one, and channels."""
    return sorted({tensor.dim() - 1, min(1, tensor.dim() - 1)})


def _real(tensor: Tensor) -> Tensor:
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return tensor.double() if tensor.dim() else tensor.double()[None]


def _ratio(gap: Tensor, scale: Tensor) -> Tensor:
    """Divide ``gap / scale``; zero by zero is no difference."""
    return torch.where(gap == 0, 0.0, gap / scale)


def same_value(want: Any, have: Any) -> bool:
    """Return whether two values are of one type and equal; NaN equals NaN."""
    if type(want) is not type(have):
        return False
    if isinstance(want, float) and math.isnan(want):
        return math.isnan(have)
    return bool(want == have)


def _short(paths: Sequence[str]) -> str:
    return ", ".join(path or "one tensor" for path in paths[:6]) + (", ..." if len(paths) > 6 else "")


def largest_difference(expected: Sequence[Any], found: Sequence[Any]) -> float:
    """Measure the largest absolute difference of two lists of outputs, relative to the largest value of each.

    Args:
        expected: the outputs of the reference.
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
