"""The budget: how much of each quantity may remain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cached_property
from math import ceil, floor

import numpy as np
import numpy.typing as npt

from secateur.budget.times import Milliseconds, as_time
from secateur.errors import UsageError
from secateur.graph import ChannelGraph
from secateur.graph.groups import IntArray
from secateur.latency import LatencyModel

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

QUANTITIES = {
    "params": "parameters",
    "macs": "MACs of one example",
    "bytes": "bytes of parameters",
    "memory": "bytes of activations",
    "channels": "prunable channels",
    "latency": "latency",
}
"""All quantities that are counted, as a table calls them."""

_COLUMNS = tuple(QUANTITIES)
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
        latency: time of a forward pass on this device: a share, or milliseconds: an integer, a float above
            1, ``Milliseconds(0.4)``, or words such as ``"12.5 ms"``. Needs a latency table.

    Raises:
        UsageError: if no limit is given, or one is neither a share nor an amount.

    Example:
        >>> print(Budget(macs=0.5, params=1_000_000))
        at most 50% of the MACs, at most 1,000,000 parameters
        >>> print(Budget(latency=12.5)), print(Budget(latency=0.5))
        at most 12.5 ms
        at most 50% of the milliseconds
        (None, None)
    """

    macs: Limit | None = None
    params: Limit | None = None
    channels: Limit | None = None
    memory: Limit | None = None
    latency: Limit | str | None = None

    def __post_init__(self) -> None:
        for name, limit in self.given.items():
            check = checked_time if name == "latency" else checked_limit
            object.__setattr__(self, name, check(limit, f"Budget({name}=...)"))
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

    def amounts(self, graph: ChannelGraph, latency: LatencyModel | None = None) -> dict[str, int]:
        """The limits as absolute amounts for a network: a share of n is rounded down.

        A share counts as the decimal number that it is printed as, so 0.29 of 100 is 29.

        Args:
            graph: the graph of the network that shares refer to.
            latency: tells its milliseconds.

        Returns:
            The largest amount that may remain, by quantity, for every limit that is set; times in
            nanoseconds.

        Raises:
            UsageError: if latency is limited, and there is nothing that tells milliseconds.
        """
        if self.latency is not None and latency is None:
            raise UsageError(
                "a latency budget needs the network's times on this device: give make_plan the table that "
                "latency_table(model, graph, example_inputs) measures, as latency"
            )
        now = originals(graph, latency)
        return {
            name: limit.nanoseconds if isinstance(limit, Milliseconds) else amount_of(limit, now[name])
            for name, limit in self.given.items()
        }

    def __str__(self) -> str:
        return ", ".join(f"at most {_limit_words(name, limit)}" for name, limit in self.given.items())


@dataclass(frozen=True, eq=False)
class Meter:
    """What choices of widths need, and whether that is within limits.

    Args:
        graph: the graph of the network.
        amounts: the largest amount that may remain, by quantity.
        latency: tells milliseconds, if they count.
    """

    graph: ChannelGraph
    amounts: Mapping[str, int]
    latency: LatencyModel | None = None

    def needs(self, widths: IntArray) -> IntArray:
        """Parameters, MACs, bytes, memory, channels and nanoseconds of widths (..., groups); shape (..., 6).

        Nanoseconds are zero where nothing tells them.
        """
        channels = widths[..., self._prunable].sum(axis=-1, keepdims=True)
        time = np.zeros_like(channels)
        if self.latency is not None:
            time[..., 0] = np.rint(self.latency.milliseconds(widths) * Milliseconds(1).nanoseconds)
        return np.concatenate([self.graph.cost_model.evaluate(widths), channels, time], axis=-1)

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
        """What one choice of widths needs, by quantity; times only where something tells them."""
        found = dict(zip(_COLUMNS, self.needs(widths).tolist(), strict=True))
        return {name: need for name, need in found.items() if name != "latency" or self.latency is not None}

    def least_of(self, *choices: IntArray) -> dict[str, int]:
        """The least that any of some choices of widths needs, by quantity.

        Narrower is not always faster, so the narrowest widths need not be those that take the least time.
        """
        found = [self.named(widths) for widths in choices]
        return {name: min(needs[name] for needs in found) for name in found[0]}

    @cached_property
    def _bounds(self) -> IntArray:
        return np.array([self.amounts.get(name, _BOUNDLESS) for name in _COLUMNS], dtype=np.int64)

    @cached_property
    def _prunable(self) -> IntArray:
        return np.flatnonzero([group.prunable for group in self.graph.groups])


def originals(graph: ChannelGraph, latency: LatencyModel | None = None) -> dict[str, int]:
    """What a network needs as it is, by quantity."""
    widths = np.array([group.channels for group in graph.groups], dtype=np.int64)
    return Meter(graph, {}, latency).named(widths)


def budget_of(amounts: Mapping[str, int]) -> Budget:
    """A budget of absolute amounts, as :meth:`Budget.amounts` gives them.

    >>> print(budget_of({"macs": 1000, "latency": 12_500_000}))
    at most 1,000 MACs, at most 12.5 ms
    """
    limits: dict[str, Limit] = dict(amounts)
    if "latency" in amounts:
        limits["latency"] = Milliseconds.of_nanoseconds(amounts["latency"])
    return Budget(**limits)


def words_for(name: str, number: int) -> str:
    """An amount of a quantity, in words.

    >>> words_for("macs", 1500), words_for("latency", 12_500_000)
    ('1,500 MACs', '12.5 ms')
    """
    if name == "latency":
        return str(Milliseconds.of_nanoseconds(number))
    return f"{number:,} {WORDS[name]}"


def _limit_words(name: str, limit: Limit) -> str:
    if isinstance(limit, Milliseconds):
        return str(limit)
    if isinstance(limit, int):
        return f"{limit:,} {WORDS[name]}"
    return f"{limit * 100:.4g}% of the {WORDS[name]}"


def checked_time(limit: object, what: str) -> Limit:
    """A share, or a time.

    Raises:
        UsageError: if it is neither.
    """
    time = as_time(limit)
    if time is not None:
        return time
    if isinstance(limit, float | np.floating) and 0 < limit <= 1 and not isinstance(limit, Milliseconds):
        return checked_limit(limit, what)
    raise UsageError(
        f"{what}: {limit!r} is neither a share (a float above 0 and at most 1) nor a time (milliseconds as "
        "an integer or as a float above 1, or words such as '12.5 ms')"
    )


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
