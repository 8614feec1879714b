"""Recover accuracy after a cut, and measure how much a cut costs."""

from __future__ import annotations

from secateur.recovery.curves import CurveOptions, width_curves
from secateur.recovery.recalibration import recalibrate
from secateur.recovery.reconstruction import LeastSquares, Reconstruction, reconstruct

__all__ = ["CurveOptions", "LeastSquares", "Reconstruction", "recalibrate", "reconstruct", "width_curves"]
