"""The latency table: the milliseconds of a network as a function of its group widths."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from secateur.errors import UsageError
from secateur.graph.groups import IntArray
from secateur.latency.calibration import Calibration
from secateur.latency.lookup import Lookup
from secateur.latency.surface import Surface
from secateur.latency.term import Term

FloatArray = npt.NDArray[np.float64]


class LatencyModel(Protocol):
    """All that a plan needs to know of time. A table is one; so is anything else with this method."""

    def milliseconds(self, widths: IntArray) -> FloatArray:
        """Time of a forward pass with groups of some widths.

        Args:
            widths: channels of each group, shape ``(..., groups)``.

        Returns:
            Milliseconds, shape ``(...)``.
        """


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """How long a network takes on one device, for any widths of its groups.

    Made by :func:`secateur.latency.latency_table`. The times of all operators add up, each times the factor
    of its kind; factors, and what the sum lacks, were seen when the whole network ran at several widths.

    Attributes:
        terms: operators with their times.
        calibration: how their times become that of the network.
        batch: examples in the inputs.
        conditions: device, threads, versions, memory layout.
        runtime: how the whole network was run.

    Example:
        Two milliseconds for 8 channels, and half a millisecond that no operator accounts for:

        >>> from secateur.latency.surface import Curve, Surface
        >>> surface = Surface(2.0, (Curve((4, 8), (1.0, 2.0)),))
        >>> term = Term("aten.relu.default", "relu", ("act",), surface, np.array([[0]]), np.array([[[1]]]))
        >>> table = LatencyTable((term,), Calibration(overhead=0.5), 1, "a device")
        >>> table.milliseconds(np.array([[8], [4]])).tolist()
        [2.5, 1.5]
    """

    terms: tuple[Term, ...] = field(repr=False)
    calibration: Calibration
    batch: int
    conditions: str
    runtime: str = "eager"

    def milliseconds(self, widths: IntArray) -> FloatArray:
        """Time of a forward pass, shape ``(...)``, for widths ``(..., groups)``."""
        array = np.asarray(widths, dtype=np.int64)
        rows = array.reshape(math.prod(array.shape[:-1]), array.shape[-1])
        return self._lookup.sum(rows).reshape(array.shape[:-1]) + self.calibration.overhead

    @cached_property
    def _lookup(self) -> Lookup:
        return Lookup.of(self.terms, [self.calibration.factor(term.kind) for term in self.terms])

    def __str__(self) -> str:
        """The kinds of operators with their share of the time, the costliest first."""
        kinds: dict[str, list[float]] = {}
        for term in self.terms:
            each = term.surface.full * self.calibration.factor(term.kind)
            kinds.setdefault(term.kind, []).append(each * len(term.modules))
        kinds["besides"] = [self.calibration.overhead]
        total = sum(map(sum, kinds.values())) or 1.0
        ordered = sorted(kinds.items(), key=lambda item: -sum(item[1]))
        width = max([len("operator"), *(len(name) for name, _ in ordered)])
        lines = [f"batch {self.batch}, {self.conditions}, {self.runtime}"]
        lines.append(f"{'operator':<{width}}      ms   share")
        lines += [f"{name:<{width}}  {sum(ms):>6.3g}  {sum(ms) / total:>6.1%}" for name, ms in ordered]
        for told, seen in reversed(self.calibration.seen):
            lines.append(f"network {told:.4g} ms by the table, {seen:.4g} ms by the clock")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; :meth:`from_dict` gives an equal table back."""
        return {
            "batch": self.batch,
            "conditions": self.conditions,
            "runtime": self.runtime,
            "calibration": self.calibration.to_dict(),
            "terms": [
                {
                    "name": term.name,
                    "kind": term.kind,
                    "modules": list(term.modules),
                    "surface": term.surface.to_dict(),
                    "constants": term.constants.tolist(),
                    "slots": [_sparse(place) for place in term.slots],
                    "groups": term.slots.shape[-1],
                }
                for term in self.terms
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LatencyTable:
        """A table from what :meth:`to_dict` returned.

        Raises:
            UsageError: the data is something else.
        """
        try:
            terms = tuple(
                Term(
                    str(item["name"]),
                    str(item["kind"]),
                    tuple(map(str, item["modules"])),
                    Surface.from_dict(item["surface"]),
                    np.array(item["constants"], dtype=np.int64).reshape(len(item["modules"]), -1),
                    np.stack([_dense(place, int(item["groups"])) for place in item["slots"]]),
                )
                for item in data["terms"]
            )
            calibration = Calibration.from_dict(data["calibration"])
            return cls(terms, calibration, int(data["batch"]), str(data["conditions"]), str(data["runtime"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"this is no latency table that to_dict() wrote: {error}") from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LatencyTable) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_dict()))


def _sparse(axes: IntArray) -> list[dict[str, int]]:
    return [{str(group): int(axis[group]) for group in np.flatnonzero(axis)} for axis in axes]


def _dense(axes: Sequence[Mapping[str, int]], groups: int) -> IntArray:
    table = np.zeros((len(axes), groups), dtype=np.int64)
    for axis, counts in enumerate(axes):
        for group, count in counts.items():
            table[axis, int(group)] = count
    return table
