"""The cache flusher, which runs between two uses of an operator."""

from __future__ import annotations

import torch

from secateur.latency.operator_timer import cache_flusher
from secateur.latency.operators import OperatorCall, TensorSpec


def test_values_keep_their_numbers_and_are_written_again() -> None:
    flush = cache_flusher(torch.device("cpu"))
    values = [torch.rand(2, 3, 4), torch.rand(5)]
    before = [value.clone() for value in values]
    versions = [value._version for value in values]
    flush(values)
    assert all(torch.equal(value, old) for value, old in zip(values, before, strict=True))
    assert [value._version for value in values] > versions


def test_the_rows_of_a_grouped_product_are_divided_among_its_matrices() -> None:
    rows = TensorSpec((64, 8), torch.float32, False)
    ends = TensorSpec((8,), torch.int32, False)
    call = OperatorCall("aten._grouped_mm.default", (rows, ends), (), torch.relu)
    found = call.make(ends, torch.device("cpu"))
    assert (found.tolist(), found.dtype) == ([8, 16, 24, 32, 40, 48, 56, 64], torch.int32)
    assert call.make(rows, torch.device("cpu")).shape == (64, 8)
    plain = OperatorCall("aten.index_select.default", (rows, ends), (), torch.relu)
    assert plain.make(ends, torch.device("cpu")).eq(0).all()
