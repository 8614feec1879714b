"""Combine the verifications of several cuts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from secateur.recipes import Cut


class Checked(Protocol):
    """Declare the attributes that are used of a ``secateur.verification.Verification``."""

    @property
    def ok(self) -> bool:
        """Return whether the smaller network equals the masked original."""

    @property
    def max_error(self) -> float:
        """Return the largest relative difference."""

    @property
    def tolerance(self) -> float:
        """Return the tolerance of the relative difference."""

    @property
    def outputs(self) -> int:
        """Return the number of output values that were compared."""

    @property
    def inputs(self) -> int:
        """Return the number of inputs that were tried."""

    @property
    def modes(self) -> Sequence[str]:
        """Return the modes that were compared."""

    @property
    def precision(self) -> str:
        """Return the precision in which both networks were run."""

    @property
    def not_checked(self) -> Sequence[str]:
        """Return what could not be compared."""


def together(found: Sequence[Checked]) -> dict[str, Any]:
    """Combine verifications into one that holds for all cuts.

    Args:
        found: of all cuts.

    Returns:
        ``ok``: whether all are; ``cuts``: how many; ``max_error`` and ``tolerance`` of the cut that is
        closest to its tolerance; ``outputs``: their sum; ``inputs``: the fewest of any cut; ``modes``: those
        compared after every cut; ``precision``: the least exact one; ``not_checked``: all that was left out
        after any cut.

    >>> together([])["ok"], together([])["cuts"]
    (True, 0)
    """
    nearest = max(found, key=lambda one: one.max_error / one.tolerance, default=None)
    modes = [mode for mode in found[0].modes if all(mode in one.modes for one in found)] if found else []
    return {
        "ok": all(one.ok for one in found),
        "cuts": len(found),
        "max_error": nearest.max_error if nearest else 0.0,
        "tolerance": nearest.tolerance if nearest else 0.0,
        "outputs": sum(one.outputs for one in found),
        "inputs": min((one.inputs for one in found), default=0),
        "modes": modes,
        # "float64" alone comes first.
        "precision": max((one.precision for one in found), default="float64", key=len),
        "not_checked": list(dict.fromkeys(what for one in found for what in one.not_checked)),
    }


def of_cuts(cuts: Sequence[Cut]) -> dict[str, Any]:
    """Combine the verifications of cuts, with the number of channels that they removed."""
    found = [cut.verification for cut in cuts]
    return {**together(found), "channels_removed": sum(one.channels_removed for one in found)}
