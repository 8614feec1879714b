"""Compute products of float32 numbers in float32.

A GPU rounds the factors of convolutions to ten bits by default (TF32), and users may also allow it for matrix
products, for speed. Then two orders of summation differ by a thousandth, as much as a wrong cut may change:
when numbers are compared, or small differences measured, nothing may be rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

_KINDS = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 products in float32 within a block, whatever is allowed outside it.

    Autocast is switched off in the same block. Both are restored afterwards.

    >>> layer, x = torch.nn.Linear(64, 64), torch.randn(8, 64)
    >>> with torch.autocast("cpu", torch.bfloat16), full_precision():
    ...     layer(x).dtype
    torch.float32
    """
    with ExitStack() as stack:
        for kind in _KINDS:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        switches = _switches()
        before = [switch.value for switch in switches]
        for switch in switches:
            switch.put(switch.exact)
        try:
            yield
        finally:
            for switch, value in zip(switches, before, strict=True):
                if value is not None:
                    switch.put(value)


@dataclass(frozen=True)
class _Switch:
    """Read and set one setting that allows rounding.

    Attributes:
        owner: the object that has it.
        name: of the attribute.
        exact: its value without rounding.
    """

    owner: Any
    name: str
    exact: Any

    @property
    def value(self) -> Any:
        """Return its value; ``None`` if PyTorch refuses to read it, since it was set by another function."""
        try:
            return getattr(self.owner, self.name)
        except RuntimeError:
            return None

    def put(self, value: Any) -> None:
        """Set its value."""
        setattr(self.owner, self.name, value)


class _Products:
    """Read and set the setting of matrix products, which has functions instead of an attribute."""

    @property
    def precision(self) -> str:
        """Return the result of :func:`torch.get_float32_matmul_precision`."""
        return torch.get_float32_matmul_precision()

    @precision.setter
    def precision(self, value: str) -> None:
        torch.set_float32_matmul_precision(value)


def _switches() -> list[_Switch]:
    """Return all settings, in the order in which they must be set.

    Each operator has one since PyTorch 2.9. The older ones, of a whole library, change those of its
    operators, so they come first. If they were not changed, they would contradict their operators, and
    PyTorch itself reads them.
    """
    backends: Any = torch.backends
    older = [_Switch(backends.cudnn, "allow_tf32", exact=False), _Switch(_Products(), "precision", "highest")]
    if not hasattr(backends.cudnn, "conv"):
        return older
    operators = [
        *(
            getattr(library, kind)
            for library in (backends.cudnn, backends.mkldnn)
            for kind in ("conv", "rnn")
        ),
        *(library.matmul for library in (backends.cuda, backends.mkldnn)),
    ]
    return older + [_Switch(operator, "fp32_precision", "ieee") for operator in operators]
