"""How the learning rate changes over a phase: pure functions of how far it has come.

A schedule maps the number of finished steps to a factor on the base learning rate. Nothing is
stored between steps, so a phase that is taken up again in the middle goes on as if never left.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import MappingProxyType

Curve = Callable[[float], float]


def constant(_progress: float) -> float:
    """The base learning rate throughout."""
    return 1.0


def cosine(progress: float) -> float:
    """Half a cosine from one to zero (Loshchilov and Hutter 2017, arXiv 1608.03983, eq. 5).

    >>> [round(cosine(share), 2) for share in (0.0, 0.5, 1.0)]
    [1.0, 0.5, 0.0]
    """
    return (1 + math.cos(math.pi * progress)) / 2


def one_cycle(progress: float, *, rise: float = 0.3, start: float = 1 / 25, end: float = 1e-4) -> float:
    """Up to the base rate and down again (Smith and Topin 2018, arXiv 1708.07120).

    Args:
        progress: share of the phase that is over, in [0, 1].
        rise: share of the phase spent going up.
        start: factor at the beginning.
        end: factor at the end.

    >>> [round(one_cycle(share), 2) for share in (0.0, 0.3, 1.0)]
    [0.04, 1.0, 0.0]
    """
    if progress < rise:
        return start + (1 - start) * (1 - cosine(progress / rise))
    return end + (1 - end) * cosine((progress - rise) / (1 - rise))


CURVES: MappingProxyType[str, Curve] = MappingProxyType(
    {"constant": constant, "cosine": cosine, "one-cycle": one_cycle}
)
"""Every schedule by the name that settings use."""


def factor(name: str, step: int, steps: int, warmup: float = 0.0) -> float:
    """Factor on the base learning rate for one step.

    Args:
        name: a name in ``CURVES``.
        step: steps finished before this one, from 0.
        steps: steps of the whole phase.
        warmup: share of the phase, in [0, 1), that climbs in a straight line before the curve begins.

    Returns:
        A number in (0, 1].

    >>> [factor("constant", step, 10, warmup=0.4) for step in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    climbing = math.ceil(warmup * steps)
    if step < climbing:
        return (step + 1) / climbing
    # The first step runs at the full rate, and no step is wasted at a rate of zero.
    return CURVES[name]((step - climbing) / max(steps - climbing, 1))
