"""Verify a cut: the smaller network must compute what the masked original computes."""

from __future__ import annotations

from secateur.verification.comparison import verify
from secateur.verification.expectation import Expectation
from secateur.verification.outcome import Verification

__all__ = ["Expectation", "Verification", "verify"]
