"""Fit the responses of convolutions and linear layers by least squares, from the patches that they read."""

from __future__ import annotations

from secateur.responses.elimination import Elimination, Removable, Uncorrelated, nested_errors
from secateur.responses.gather import blocks, positions, rows_to_take
from secateur.responses.moments import Moments
from secateur.responses.solve import (
    FittedWeights,
    fit_dual,
    fit_moments,
    fit_restricted,
    fit_rows_restricted,
)
from secateur.responses.window import Window

__all__ = [
    "Elimination",
    "FittedWeights",
    "Moments",
    "Removable",
    "Uncorrelated",
    "Window",
    "blocks",
    "fit_dual",
    "fit_moments",
    "fit_restricted",
    "fit_rows_restricted",
    "nested_errors",
    "positions",
    "rows_to_take",
]
