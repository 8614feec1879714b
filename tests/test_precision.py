"""Where numbers are compared, float32 products are float32 products, whatever the user allows for speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from secateur.precision import full_precision


def settings() -> dict[str, Any]:
    """All switches, as PyTorch shows them; an error where it refuses to answer."""
    backends: Any = torch.backends
    readers: dict[str, Callable[[], Any]] = {
        "matmul": torch.get_float32_matmul_precision,
        "cudnn": lambda: backends.cudnn.allow_tf32,
        "cuda": lambda: backends.cuda.matmul.allow_tf32,
    }
    for library, operator in (("cudnn", "conv"), ("cudnn", "rnn"), ("mkldnn", "conv"), ("mkldnn", "matmul")):
        if hasattr(getattr(backends, library), operator):
            place = getattr(getattr(backends, library), operator)
            readers[f"{library}.{operator}"] = lambda place=place: place.fp32_precision
    found = {}
    for name, read in readers.items():
        try:
            found[name] = read()
        except RuntimeError as error:  # old and new ways of saying it do not mix
            found[name] = type(error)
    return found


@pytest.fixture(autouse=True)
def _as_they_were() -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize("allowed", ["highest", "high", "medium"])
@pytest.mark.parametrize("cudnn", [True, False])
def test_switches_are_put_back(allowed: str, cudnn: bool) -> None:
    torch.set_float32_matmul_precision(allowed)
    torch.backends.cudnn.allow_tf32 = cudnn
    before = settings()
    with full_precision():
        inside = settings()
    assert settings() == before
    assert "tf32" not in inside.values()
    assert "bf16" not in inside.values()
    assert RuntimeError not in inside.values()  # PyTorch asks all of them where it captures a network


def test_products_are_exact_where_rounding_is_allowed() -> None:
    layer, x = nn.Linear(256, 256, bias=False).requires_grad_(False), torch.randn(64, 256)
    exact = x.double() @ layer.weight.double().T
    torch.set_float32_matmul_precision("medium")
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer(x)
        with full_precision():
            full = layer(x)
        assert layer(x).dtype == rounded.dtype == torch.bfloat16
    assert settings()["matmul"] == "medium"
    assert float((full - exact).abs().max()) < 1e-5 * float(exact.abs().max())


def test_switches_are_put_back_after_an_error() -> None:
    torch.set_float32_matmul_precision("high")
    before = settings()
    with pytest.raises(ZeroDivisionError), full_precision():
        raise ZeroDivisionError
    assert settings() == before
