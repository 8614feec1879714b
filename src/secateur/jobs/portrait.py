"""The network as it was and as it is, in plain values: what a report is drawn from.

A report is made without the data, and without running the code that builds the network. So what it shows
of the network's make is written into the run folder (``network.json``) when the run ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from secateur.errors import DataError

FORMAT = 1


@dataclass(frozen=True)
class GroupPortrait:
    """A channel group before and after a run.

    Attributes:
        name: of the group.
        before: channels as it was.
        after: channels that are left.
        frozen: why it may not be cut; ``None`` if it may.
        written_by: modules that write its channels.
        read_by: modules that contract over them.
        carried_by: modules that hold something for each.
        params: share of the parameters that hang on it, before.
        macs: share of the multiply-accumulates, likewise.
        fate: for each channel the number of the cut that took it, 0 if it stays; empty if all stay.
    """

    name: str
    before: int
    after: int
    frozen: str | None
    written_by: tuple[str, ...]
    read_by: tuple[str, ...]
    carried_by: tuple[str, ...]
    params: float
    macs: float
    fate: tuple[int, ...] = ()

    @property
    def modules(self) -> tuple[str, ...]:
        """All modules that it touches, each once."""
        return tuple(dict.fromkeys((*self.written_by, *self.carried_by, *self.read_by)))


@dataclass(frozen=True)
class Costs:
    """What one layer needs.

    Attributes:
        params: elements of its own parameters.
        macs: multiply-accumulates for one example.
        ms: milliseconds spent in it and in none of its children; ``None`` if it did not run as a module.
    """

    params: int
    macs: int
    ms: float | None


@dataclass(frozen=True)
class LayerPortrait:
    """A module that costs anything, before and after a run.

    Attributes:
        name: its path.
        kind: its class.
        before: what it needed.
        after: what it needs.
    """

    name: str
    kind: str
    before: Costs
    after: Costs


@dataclass(frozen=True)
class Timing:
    """Under which conditions layers were timed.

    Attributes:
        batch: examples in the forward pass.
        device: where it ran.
        runs: passes of each network, taken in turn.
    """

    batch: int
    device: str
    runs: int


@dataclass(frozen=True)
class Portrait:
    """A network before and after a run.

    Attributes:
        groups: its channel groups, in the order of the network.
        layers: its modules that cost anything, likewise.
        cost_before: ``params``, ``macs``, ``bytes`` and ``memory`` as it was.
        cost_after: the same as it is.
        timing: how the times of the layers were taken.
    """

    groups: tuple[GroupPortrait, ...]
    layers: tuple[LayerPortrait, ...]
    cost_before: Mapping[str, int]
    cost_after: Mapping[str, int]
    timing: Timing

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; :meth:`from_dict` gives the same back."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Portrait:
        """The inverse of :meth:`to_dict`.

        Raises:
            DataError: the data is something else.

        >>> portrait = Portrait((), (), {"macs": 2}, {"macs": 1}, Timing(1, "cpu", 3))
        >>> Portrait.from_dict(portrait.to_dict()) == portrait
        True
        """
        try:
            if data["format"] != FORMAT:
                raise DataError(f"it is of format {data['format']}, and this version reads {FORMAT}")
            return cls(
                tuple(_group(row) for row in data["groups"]),
                tuple(_layer(row) for row in data["layers"]),
                {str(name): int(value) for name, value in data["cost_before"].items()},
                {str(name): int(value) for name, value in data["cost_after"].items()},
                Timing(
                    batch=int(data["timing"]["batch"]),
                    device=str(data["timing"]["device"]),
                    runs=int(data["timing"]["runs"]),
                ),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"this is no description of a network ({type(error).__name__}: {error})"
            ) from error


def _group(row: Mapping[str, Any]) -> GroupPortrait:
    frozen = row["frozen"]
    return GroupPortrait(
        name=str(row["name"]),
        before=int(row["before"]),
        after=int(row["after"]),
        frozen=None if frozen is None else str(frozen),
        written_by=tuple(map(str, row["written_by"])),
        read_by=tuple(map(str, row["read_by"])),
        carried_by=tuple(map(str, row["carried_by"])),
        params=float(row["params"]),
        macs=float(row["macs"]),
        fate=tuple(map(int, row["fate"])),
    )


def _layer(row: Mapping[str, Any]) -> LayerPortrait:
    return LayerPortrait(str(row["name"]), str(row["kind"]), _costs(row["before"]), _costs(row["after"]))


def _costs(row: Mapping[str, Any]) -> Costs:
    ms = row["ms"]
    return Costs(int(row["params"]), int(row["macs"]), None if ms is None else float(ms))
