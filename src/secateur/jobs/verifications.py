"""Combine the verifications of several cuts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur.verification import Verification


def combined(found: Sequence[Verification]) -> dict[str, Any]:
    """Combine verifications into one that holds for all cuts.

    Args:
        found: of all cuts.

    Returns:
        ``ok``: whether all are; ``cuts``: how many; ``channels_removed`` and ``outputs``: their sums;
        ``max_error`` and ``tolerance`` of the cut that is closest to its tolerance; ``inputs``: the fewest of
        any cut; ``modes``: those compared after every cut; ``precision``: the least exact one;
        ``not_checked``: all that was left out after any cut.

    >>> combined([])["ok"], combined([])["cuts"]
    (True, 0)
    """
    nearest = max(found, key=lambda one: one.max_error / one.tolerance, default=None)
    modes = [mode for mode in found[0].modes if all(mode in one.modes for one in found)] if found else []
    return {
        "ok": all(one.ok for one in found),
        "cuts": len(found),
        "channels_removed": sum(one.channels_removed for one in found),
        "max_error": nearest.max_error if nearest else 0.0,
        "tolerance": nearest.tolerance if nearest else 0.0,
        "outputs": sum(one.outputs for one in found),
        "inputs": min((one.inputs for one in found), default=0),
        "modes": modes,
        # "float64" alone comes first.
        "precision": max((one.precision for one in found), default="float64", key=len),
        "not_checked": list(dict.fromkeys(what for one in found for what in one.not_checked)),
    }
