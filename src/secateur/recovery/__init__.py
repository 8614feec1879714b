"""Recover accuracy after a cut, and measure how much a cut costs."""

from __future__ import annotations

from secateur.recovery.curves import CurveOptions, masked_damage, width_curves
from secateur.recovery.recalibration import recalibrate
from secateur.recovery.reconstruction import LeastSquares, Reconstruction, reconstruct

__all__ = [
    "CurveOptions",
    "LeastSquares",
    "Reconstruction",
    "masked_damage",
    "recalibrate",
    "reconstruct",
    "width_curves",
]
