"""What tests of networks of other libraries have in common."""

from __future__ import annotations

import pytest

QUIET = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("DeprecationWarning", "FutureWarning", "UserWarning")
]
"""Marks of tests in which a library may warn of itself."""
