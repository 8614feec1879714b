"""The cache flusher, which runs between two uses of an operator."""

from __future__ import annotations

import torch

from secateur.latency.operator_timer import cache_flusher


def test_values_keep_their_numbers_and_are_written_again() -> None:
    flush = cache_flusher(torch.device("cpu"))
    values = [torch.rand(2, 3, 4), torch.rand(5)]
    before = [value.clone() for value in values]
    versions = [value._version for value in values]
    flush(values)
    assert all(torch.equal(value, old) for value, old in zip(values, before, strict=True))
    assert [value._version for value in values] > versions
