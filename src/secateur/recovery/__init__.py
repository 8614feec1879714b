"""Recovery: what brings accuracy back after a cut."""

from __future__ import annotations

from secateur.recovery.recalibrate import recalibrate
from secateur.recovery.reconstruct import reconstruct
from secateur.recovery.refit import Repair

__all__ = ["Repair", "recalibrate", "reconstruct"]
