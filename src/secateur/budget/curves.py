"""Hold width curves: the measured damage of each width of each group, and of each removed residual branch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.interpolate import PchipInterpolator

from secateur.errors import UsageError
from secateur.formats import table
from secateur.graph.groups import IntArray


@dataclass(frozen=True)
class WidthCurve:
    """The damage of narrowing one group, at several widths.

    Attributes:
        order: all channels of the group in the order in which they are removed.
        widths: measured widths, ascending; the last is the whole group.
        damages: divergence of the network's outputs from the original's at each width; zero for
            the whole group.

    Example:
        >>> curve = WidthCurve((2, 0, 3, 1), (1, 2, 4), (0.5, 0.1, 0.0))
        >>> curve.kept(2), curve.at(np.array([1, 2, 4])).tolist()
        ((1, 3), [0.5, 0.1, 0.0])
    """

    order: tuple[int, ...]
    widths: tuple[int, ...]
    damages: tuple[float, ...]

    def __post_init__(self) -> None:
        steps = np.diff(self.widths)
        if (
            len(self.widths) != len(self.damages)
            or not self.widths
            or self.widths[0] < 1
            or self.widths[-1] != len(self.order)
            or (steps <= 0).any()
            or sorted(self.order) != list(range(len(self.order)))
            or not np.isfinite(self.damages).all()
        ):
            raise UsageError(
                "a width curve needs an order of all channels, ascending widths up to all of them, and a "
                "finite damage for each"
            )

    def kept(self, width: int) -> tuple[int, ...]:
        """List the channels that stay at a width, ascending."""
        return tuple(sorted(self.order[len(self.order) - width :]))

    def at(self, widths: IntArray) -> npt.NDArray[np.float64]:
        """Interpolate the damage at any widths of at least one channel; never smaller for a smaller width.

        Measured damages are first made monotone (a narrower group never counts as less damage). A monotone
        cubic interpolates between them; below the least measured width, the last slope continues.

        Args:
            widths: shape ``(n,)``.

        Returns:
            Shape ``(n,)``.
        """
        damages = np.maximum.accumulate(np.maximum(self.damages[::-1], 0.0))[::-1]
        if len(self.widths) == 1:
            return np.zeros(len(widths))
        inside = PchipInterpolator(self.widths, damages)(np.clip(widths, self.widths[0], self.widths[-1]))
        slope = (damages[0] - damages[1]) / (self.widths[1] - self.widths[0])
        below = np.maximum(self.widths[0] - np.asarray(widths), 0) * slope
        return np.asarray(inside + below, dtype=np.float64)


class WidthCurves(Mapping[str, WidthCurve]):
    """The width curve of every group that was measured; an immutable mapping by group name.

    Attributes:
        divergence: what the damage is: ``"kl"`` or ``"mse"``.
        unmeasured: for each prunable group without a curve, the reason.
        branches: the damage of removing each residual branch, by name; empty if that was not measured.

    Example:
        >>> curves = WidthCurves({"conv": WidthCurve((1, 0), (1, 2), (0.5, 0.0))}, "kl")
        >>> WidthCurves.from_dict(curves.to_dict()) == curves
        True
    """

    def __init__(
        self,
        curves: Mapping[str, WidthCurve],
        divergence: str,
        unmeasured: Mapping[str, str] | None = None,
        branches: Mapping[str, float] | None = None,
    ) -> None:
        self._curves = dict(curves)
        self.divergence = divergence
        self.unmeasured: Mapping[str, str] = MappingProxyType(dict(unmeasured or {}))
        self.branches: Mapping[str, float] = MappingProxyType(
            {name: float(damage) for name, damage in (branches or {}).items()}
        )
        if not np.isfinite(list(self.branches.values())).all():
            raise UsageError("the damage of a removed residual branch is a finite number")

    def __getitem__(self, name: str) -> WidthCurve:
        return self._curves[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._curves)

    def __len__(self) -> int:
        return len(self._curves)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WidthCurves) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    @property
    def measured(self) -> int:
        """Count the groups and branches that are measured."""
        return len(self) + len(self.branches)

    def __repr__(self) -> str:
        points = sum(len(curve.widths) for curve in self.values())
        branches = f", {len(self.branches)} branches" if self.branches else ""
        return f"WidthCurves({len(self)} groups, {points} widths{branches}, {self.divergence})"

    def __str__(self) -> str:
        """Format a table of the damage of each group at some widths, and of each removed branch."""
        rows: list[tuple[str, ...]] = [("group", "channels", "75%", "50%", "25%")]
        for name, curve in self.items():
            count = len(curve.order)
            at = curve.at(np.array([max(1, round(count * share)) for share in (0.75, 0.5, 0.25)]))
            rows.append((name, str(count), *(f"{item:.4g}" for item in at)))
        lines = [f"damage ({self.divergence}) by share of channels that stay", *table(rows)]
        lines += [f"{name}: {why}" for name, why in self.unmeasured.items()]
        if self.branches:
            branches = [(name, f"{damage:.4g}") for name, damage in self.branches.items()]
            lines += table([("residual branch", "absent"), *branches])
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON; :meth:`from_dict` gives equal curves back."""
        return {
            "divergence": self.divergence,
            "unmeasured": dict(self.unmeasured),
            "branches": dict(self.branches),
            "curves": {
                name: {
                    "order": list(curve.order),
                    "widths": list(curve.widths),
                    "damages": list(curve.damages),
                }
                for name, curve in self._curves.items()
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WidthCurves:
        """Read curves back from what :meth:`to_dict` returned.

        Raises:
            UsageError: the data is something else.
        """
        try:
            curves = {
                str(name): WidthCurve(
                    tuple(map(int, item["order"])),
                    tuple(map(int, item["widths"])),
                    tuple(map(float, item["damages"])),
                )
                for name, item in data["curves"].items()
            }
            return cls(curves, str(data["divergence"]), data["unmeasured"], data["branches"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"these are not width curves that to_dict() wrote: {error}") from error
