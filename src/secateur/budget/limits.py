"""Define budgets, how much of each quantity may remain, and count what choices of widths cost."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, model_validator

from secateur.budget.choice_space import ChoiceSpace
from secateur.errors import UsageError
from secateur.settings import Settings

if TYPE_CHECKING:
    from secateur.graph import ChannelGraph
    from secateur.graph.groups import IntArray
    from secateur.latency import LatencyModel

Allocation = Literal["global", "uniform", "curves"]
"""How a budget is divided among groups."""


@dataclass(frozen=True)
class Quantity:
    """The words for a quantity.

    Attributes:
        unit: what an amount of it counts, as messages write it after the number.
        title: its name in tables.
    """

    unit: str
    title: str


QUANTITIES = {
    "params": Quantity("parameters", "parameters"),
    "macs": Quantity("MACs", "MACs of one example"),
    "bytes": Quantity("bytes of parameters", "bytes of parameters"),
    "memory": Quantity("bytes of activations", "bytes of activations"),
    "channels": Quantity("channels", "prunable channels"),
    "latency": Quantity("milliseconds", "latency"),
}
"""All quantities that are counted, in the order of :meth:`CostEvaluator.evaluate`."""

_BOUNDLESS = np.iinfo(np.int64).max
_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9}
TIME = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>ns|us|µs|ms|s)")
"""A time with its unit, in lower case."""

NANOSECONDS = 10**6
"""Nanoseconds in a millisecond."""


def _share(limit: object) -> float | None:
    """Return a float strictly between 0 and 1 as a plain Python number; ``None`` for anything else."""
    if not isinstance(limit, float | np.floating):
        return None
    share = float(str(limit))  # through its decimal form, a 32-bit 0.3 becomes the 0.3 that was meant
    return share if 0 < share < 1 else None


def _amount(limit: object) -> int | None:
    """Return an integer of at least 1 as a plain Python number; ``None`` for anything else."""
    whole = isinstance(limit, int | np.integer) and not isinstance(limit, bool)
    return int(limit) if whole and limit >= 1 else None  # type: ignore[call-overload, operator]


def _checked_limit(limit: object) -> int | float | None:
    """Return the limit of a counted quantity as a plain Python number; the error says what to write."""
    if limit is None:
        return None
    found = _amount(limit) or _share(limit)
    if found is None:
        raise ValueError(
            f"{limit!r} is neither a share nor an amount; write a float between 0 and 1, such as 0.5, for "
            "the share that may remain, or an integer of at least 1, such as 1_000_000, for an amount"
        )
    return found


_ShareOrAmount = Annotated[int | float | None, BeforeValidator(_checked_limit)]


def _checked_time(limit: object) -> float | str | None:
    """Return the limit of latency, a plain Python number or words; the error says what to write."""
    if limit is None:
        return None
    if isinstance(limit, str):
        found = TIME.fullmatch(limit.strip().lower())
        if found is not None and 0 < float(found["number"]) < math.inf:
            return f"{found['number']} {found['unit']}"
    share = _share(limit)
    if share is not None:
        return share
    number = isinstance(limit, int | float | np.integer | np.floating) and not isinstance(limit, bool)
    meant = f"{limit} ms" if number and 0 < limit < math.inf else "12 ms"  # type: ignore[operator]
    raise ValueError(
        f'{limit!r} is neither a share nor a time; write Budget(latency="{meant}") for a time (units: ns, '
        "us, ms, s), or a float between 0 and 1, such as 0.5, for a share of the original's"
    )


class Budget(Settings):
    """Limit what may remain of a network; all given limits apply.

    A float strictly between 0 and 1 is the share that may remain of the network for which the plan is made.
    An integer is an absolute amount, at least 1. So ``0.5`` is half and ``1_000_000`` a million; ``1.0`` is
    refused, since the whole is not a limit.

    Attributes:
        macs: multiply-accumulates of one example.
        params: parameters of the whole network.
        channels: channels of the prunable groups; frozen groups do not count.
        memory: peak bytes of live activations, as in ``Cost.memory``.
        latency: time of a forward pass on this device: a share, or a time with its unit such as ``"12.5 ms"``
            or ``"800 us"``. Needs a latency table.

    Raises:
        UsageError: no limit is given, or one is neither a share nor an amount.

    Example:
        >>> print(Budget(macs=0.5, params=1_000_000))
        at most 50% of the MACs, at most 1,000,000 parameters
        >>> print(Budget(latency="12.5 ms"))
        at most 12.5 ms
        >>> Budget(latency=12)
        Traceback (most recent call last):
        secateur.settings.SettingsError: latency: 12 is neither a share nor a time; write \
Budget(latency="12 ms") for a time (units: ns, us, ms, s), or a float between 0 and 1, such as 0.5, for a \
share of the original's
    """

    macs: _ShareOrAmount = None
    params: _ShareOrAmount = None
    channels: _ShareOrAmount = None
    memory: _ShareOrAmount = None
    latency: Annotated[float | str | None, BeforeValidator(_checked_time)] = None

    @model_validator(mode="after")
    def _limits_something(self) -> Budget:
        if not self.given:
            raise ValueError(f"a budget needs at least one limit: {', '.join(type(self).model_fields)}")
        return self

    @property
    def given(self) -> dict[str, Any]:
        """Return the limits that are set, by quantity."""
        return self.model_dump(exclude_none=True)

    def amounts(self, graph: ChannelGraph, latency: LatencyModel | None = None) -> dict[str, int]:
        """Resolve the limits to absolute amounts for a network: a share of n is rounded down.

        A share counts as the decimal number that it is printed as, so 0.29 of 100 is 29.

        Args:
            graph: the graph of the network that shares refer to.
            latency: predicts its milliseconds.

        Returns:
            The largest amount that may remain, by quantity, for every limit that is set; times in
            nanoseconds.

        Raises:
            UsageError: latency is limited, and nothing predicts it.
        """
        if self.latency is not None and latency is None:
            raise UsageError(
                "a latency budget needs the network's times on this device: give make_plan the table that "
                "secateur.latency.latency_table(model, graph, example_inputs) measures, as latency"
            )
        now = CostEvaluator(ChoiceSpace.of(graph), {}, latency).original
        return {
            name: nanoseconds(limit) if isinstance(limit, str) else amount_of(limit, now[name])
            for name, limit in self.given.items()
        }

    def limits(
        self, graph: ChannelGraph, latency: LatencyModel | None = None, *, uniform: bool = False
    ) -> Limits:
        """Resolve the limits for a plan.

        Args:
            graph: as for :meth:`amounts`.
            latency: as for :meth:`amounts`.
            uniform: whether the same share of every group is removed at once. Then a share of the channels
                is the share that each group may keep, in place of an amount.

        Raises:
            UsageError: latency is limited, and nothing predicts it.
        """
        amounts = self.amounts(graph, latency)
        if not (uniform and isinstance(self.channels, float)):
            return Limits(amounts)
        del amounts["channels"]
        return Limits(amounts, self.channels)

    def __str__(self) -> str:
        return ", ".join(f"at most {_limit_words(name, limit)}" for name, limit in self.given.items())


@dataclass(frozen=True)
class Limits:
    """What a plan must keep to: the limits of a budget, resolved for a network.

    Attributes:
        amounts: the largest amount that may remain, by quantity; times in nanoseconds.
        share: the largest share that each group may keep, rounded down.
    """

    amounts: Mapping[str, int]
    share: float | None = None


@dataclass(frozen=True, eq=False)
class CostEvaluator:
    """Compute the costs of choices of widths, and compare them with limits.

    Attributes:
        space: the network and the choices of its widths.
        limits: the largest amount that may remain, by quantity; times in nanoseconds.
        latency: predicts milliseconds, if they count.
    """

    space: ChoiceSpace
    limits: Mapping[str, int]
    latency: LatencyModel | None = None

    @property
    def graph(self) -> ChannelGraph:
        """Return the graph of the network."""
        return self.space.graph

    def evaluate(self, choices: IntArray) -> IntArray:
        """Count parameters, MACs, bytes, memory, channels and nanoseconds; choices (..., ties) to (..., 6).

        Nanoseconds are zero where nothing predicts them.
        """
        widths, depth = self.space.expand(choices), self.space.depth
        groups, present = widths[..., : len(self.graph.groups)], depth.present(widths)
        if depth.units:
            costs = self.graph.wiring.cost_model.evaluate(np.concatenate([groups, present], axis=-1))
        else:  # in half of the time
            costs = self.graph.cost_model.evaluate(groups)
        groups = groups * depth.alive(widths)[..., : groups.shape[-1]]
        channels = groups[..., self._prunable].sum(axis=-1, keepdims=True)
        time = np.zeros_like(channels)
        if self.latency is not None:
            # A model of times that knows no branches need not take them.
            full = groups if present.all() else np.concatenate([groups, present], axis=-1)
            time[..., 0] = np.rint(self.latency.milliseconds(full) * NANOSECONDS)
        return np.concatenate([costs, channels, time], axis=-1)

    def within(self, choices: IntArray) -> npt.NDArray[np.bool_]:
        """Return whether choices (..., ties) are within all limits; shape (...)."""
        return np.asarray((self.evaluate(choices) <= self._bounds).all(axis=-1))

    def limited(self, choices: IntArray) -> IntArray:
        """Count what choices (..., ties) need of the limited quantities; shape (..., limits)."""
        columns = list(QUANTITIES)
        return self.evaluate(choices)[..., [columns.index(name) for name in self.limits]]

    @property
    def allowed(self) -> IntArray:
        """Return the limits, in the order of :meth:`limited`; shape (limits,)."""
        return np.array(list(self.limits.values()), dtype=np.int64)

    def named(self, choice: IntArray) -> dict[str, int]:
        """Count what one choice needs, by quantity; times only where something predicts them."""
        found = dict(zip(QUANTITIES, self.evaluate(choice).tolist(), strict=True))
        return {name: need for name, need in found.items() if name != "latency" or self.latency is not None}

    @property
    def original(self) -> dict[str, int]:
        """Return the costs of the unpruned network, by quantity."""
        channels = np.array([group.channels for group in self.graph.groups], dtype=np.int64)
        return replace(self, space=ChoiceSpace.of(self.graph)).named(channels)

    def least_of(self, *choices: IntArray) -> dict[str, int]:
        """Find the least that any of some choices needs, by quantity.

        Narrower is not always faster, so the narrowest widths are not always the fastest.
        """
        found = [self.named(choice) for choice in choices]
        return {name: min(needs[name] for needs in found) for name in found[0]}

    @cached_property
    def _bounds(self) -> IntArray:
        return np.array([self.limits.get(name, _BOUNDLESS) for name in QUANTITIES], dtype=np.int64)

    @cached_property
    def _prunable(self) -> IntArray:
        return np.flatnonzero([group.prunable for group in self.graph.groups])


def nanoseconds(time: str) -> int:
    """Convert a time with its unit, as :class:`Budget` keeps it.

    >>> nanoseconds("12.5 ms"), nanoseconds("800 us")
    (12500000, 800000)
    """
    return max(1, round(milliseconds(time) * NANOSECONDS))


def milliseconds(time: str) -> float:
    """Convert a time with its unit, as :class:`Budget` keeps it.

    >>> milliseconds("12.5 ms"), milliseconds("800 us")
    (12.5, 0.8)
    """
    number, unit = time.split()
    return float(Fraction(number) * _UNITS[unit] / NANOSECONDS)


def amount_words(name: str, number: float) -> str:
    """Format an amount of a quantity; times are given in nanoseconds.

    >>> amount_words("macs", 1500), amount_words("latency", 12_500_000)
    ('1,500 MACs', '12.5 ms')
    """
    return f"{number / NANOSECONDS:.4g} ms" if name == "latency" else f"{number:,} {QUANTITIES[name].unit}"


def _limit_words(name: str, limit: int | float | str) -> str:
    if isinstance(limit, float):
        return f"{limit * 100:.4g}% of the {QUANTITIES[name].unit}"
    return amount_words(name, nanoseconds(limit) if isinstance(limit, str) else limit)


def amount_of(limit: int | float, original: int, *, up: bool = False) -> int:
    """Resolve an amount, or a share of the original, rounded down (or up) exactly.

    Example:
        >>> amount_of(0.29, 100), int(0.29 * 100)
        (29, 28)
    """
    if isinstance(limit, int):
        return limit
    exact = Fraction(str(limit)) * original
    return math.ceil(exact) if up else math.floor(exact)
