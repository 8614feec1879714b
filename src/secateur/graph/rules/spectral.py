"""Propagate labels through Fourier transforms, which freeze channels along transformed dimensions only."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.graph.labels import Value
from secateur.graph.propagation.rule_context import RuleContext
from secateur.graph.rules import rule

TRANSFORMS = """
    fft ifft rfft irfft hfft ihfft fft2 ifft2 rfft2 irfft2 hfft2 ihfft2 fftn ifftn rfftn irfftn hfftn ihfftn
    fftshift ifftshift
"""


@rule(*(f"aten.fft_{name}" for name in TRANSFORMS.split()))
def transform(op: RuleContext) -> Value:
    """Keep the labels of all dimensions but the transformed ones, which are frozen."""
    value = op.first()
    dims = _dims(op, len(value.shape))
    for dim in dims:
        op.freeze(value.labels[dim], f"a Fourier transform along channels mixes all of them ({op.place})")
    labels = (None if dim in dims else own for dim, own in enumerate(value.labels))
    return Value(op.shape, tuple(labels))


def _dims(op: RuleContext, count: int) -> set[int]:
    """Return the transformed dimensions; without ``dim``, the last ones given a size, or all."""
    dims = op.option_or("dim", None)
    if dims is None:
        sizes = op.option_or("s", None)
        return set(range(0 if sizes is None else count - len(sizes), count))
    listed = dims if isinstance(dims, Sequence) else [dims]
    return {dim % count for dim in listed}
