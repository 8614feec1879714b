"""Put the state of the process back after tests in which the library's own trainer runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _determinism_restored() -> Iterator[None]:
    """Restore what ``YOLO.train`` switches on for the whole process."""
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)
