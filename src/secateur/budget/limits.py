"""The budget: how much of each quantity may remain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cached_property
from math import ceil, floor

import numpy as np
import numpy.typing as npt

from secateur.errors import UsageError
from secateur.graph import ChannelGraph
from secateur.graph.groups import IntArray

Limit = int | float
"""An integer is an absolute amount, a float is a share above 0 and at most 1."""

WORDS = {
    "macs": "MACs",
    "params": "parameters",
    "channels": "channels",
    "memory": "bytes of activations",
    "latency": "milliseconds",
}
"""The quantities that a budget can limit, as a message calls them."""

_COLUMNS = ("params", "macs", "bytes", "memory", "channels")
_BOUNDLESS = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Budget:
    """What may remain of a network; several limits hold together.

    A float is the share that may remain of the network for which the plan is made, above 0 and at
    most 1 (a share of 1 is no limit). An integer is an absolute amount, at least 1. So ``0.5`` is
    half and ``1_000_000`` a million; ``1`` is a single one, not the whole.

    Attributes:
        macs: multiply-accumulates of one example.
        params: parameters of the whole network.
        channels: channels of the prunable groups; frozen groups do not count.
        memory: peak bytes of live activations, as in ``Cost.memory``.
        latency: milliseconds; needs a model of the device's latency.

    Raises:
        UsageError: if no limit is given, or one is neither a share nor an amount.

    Example:
        >>> print(Budget(macs=0.5, params=1_000_000))
        at most 50% of the MACs, at most 1,000,000 parameters
    """

    macs: Limit | None = None
    params: Limit | None = None
    channels: Limit | None = None
    memory: Limit | None = None
    latency: Limit | None = None

    def __post_init__(self) -> None:
        for name, limit in self.given.items():
            object.__setattr__(self, name, checked_limit(limit, f"Budget({name}=...)"))
        if not self.given:
            raise UsageError(f"a budget needs at least one limit: {', '.join(WORDS)}")

    @property
    def given(self) -> dict[str, Limit]:
        """The limits that are set, by quantity."""
        return {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if getattr(self, item.name) is not None
        }

    def amounts(self, graph: ChannelGraph) -> dict[str, int]:
        """The limits as absolute amounts for a network: a share of n is rounded down.

        A share counts as the decimal number that it is printed as, so 0.29 of 100 is 29.

        Args:
            graph: the graph of the network that shares refer to.

        Returns:
            The largest amount that may remain, by quantity, for every limit that is set.

        Raises:
            UsageError: if latency is limited, for which there is no model.
        """
        if self.latency is not None:
            raise UsageError(
                "a latency budget needs a model of the device's latency, which is not available: "
                "limit macs, params, channels or memory"
            )
        now = originals(graph)
        return {name: amount_of(limit, now[name]) for name, limit in self.given.items()}

    def __str__(self) -> str:
        return ", ".join(
            f"at most {limit:,} {WORDS[name]}"
            if isinstance(limit, int)
            else f"at most {limit * 100:.4g}% of the {WORDS[name]}"
            for name, limit in self.given.items()
        )


@dataclass(frozen=True, eq=False)
class Meter:
    """What choices of widths need, and whether that is within limits.

    Args:
        graph: the graph of the network.
        amounts: the largest amount that may remain, by quantity.
    """

    graph: ChannelGraph
    amounts: Mapping[str, int]

    def needs(self, widths: IntArray) -> IntArray:
        """Parameters, MACs, bytes, memory and channels of widths (..., groups); shape (..., 5)."""
        channels = widths[..., self._prunable].sum(axis=-1, keepdims=True)
        return np.concatenate([self.graph.cost_model.evaluate(widths), channels], axis=-1)

    def within(self, widths: IntArray) -> npt.NDArray[np.bool_]:
        """Whether widths (..., groups) keep to all limits; shape (...)."""
        return np.asarray((self.needs(widths) <= self._bounds).all(axis=-1))

    def limited(self, widths: IntArray) -> IntArray:
        """What widths (..., groups) need of the limited quantities; shape (..., limits)."""
        return self.needs(widths)[..., [_COLUMNS.index(name) for name in self.amounts]]

    @property
    def allowed(self) -> IntArray:
        """The limits, in the order of :meth:`limited`; shape (limits,)."""
        return np.array(list(self.amounts.values()), dtype=np.int64)

    def named(self, widths: IntArray) -> dict[str, int]:
        """What one choice of widths needs, by quantity."""
        return dict(zip(_COLUMNS, self.needs(widths).tolist(), strict=True))

    @cached_property
    def _bounds(self) -> IntArray:
        return np.array([self.amounts.get(name, _BOUNDLESS) for name in _COLUMNS], dtype=np.int64)

    @cached_property
    def _prunable(self) -> IntArray:
        return np.flatnonzero([group.prunable for group in self.graph.groups])


def originals(graph: ChannelGraph) -> dict[str, int]:
    """What a network needs as it is, by quantity."""
    widths = np.array([group.channels for group in graph.groups], dtype=np.int64)
    return Meter(graph, {}).named(widths)


def checked_limit(limit: object, what: str) -> Limit:
    """A share or an amount as a plain Python number.

    Raises:
        UsageError: if it is neither.
    """
    if isinstance(limit, int | np.integer) and not isinstance(limit, bool) and limit >= 1:
        return int(limit)
    # Through its decimal form, a 32-bit 0.3 becomes the 0.3 that was meant.
    if isinstance(limit, float | np.floating) and 0 < float(str(limit)) <= 1:
        return float(str(limit))
    raise UsageError(
        f"{what}: {limit!r} is neither a share (a float above 0 and at most 1) "
        "nor an amount (an integer of at least 1)"
    )


def amount_of(limit: Limit, original: int, *, up: bool = False) -> int:
    """An amount, or a share of the original, rounded down (or up) exactly.

    Example:
        >>> amount_of(0.29, 100), int(0.29 * 100)
        (29, 28)
    """
    if isinstance(limit, int):
        return limit
    exact = Fraction(str(limit)) * original
    return ceil(exact) if up else floor(exact)
