"""Compute products of float32 numbers in float32.

A GPU rounds the factors of convolutions to ten bits by default (TF32), and users let matrix
products be rounded too, for speed. Two ways of adding up the same then differ by a thousandth, as much
as a wrong cut may change: where numbers are compared, or small differences measured, nothing may be rounded.
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
    """Compute float32 products in float32 within a block, whatever is allowed outside of it.

    Autocast is switched off in the same block. Both are put back as they were.

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
    """Hold one setting that allows rounding.

    Attributes:
        owner: where it is.
        name: what it is called there.
        exact: its value where nothing is rounded.
    """

    owner: Any
    name: str
    exact: Any

    @property
    def value(self) -> Any:
        """Return its value; ``None`` if PyTorch refuses to read it, since it was set in another way."""
        try:
            return getattr(self.owner, self.name)
        except RuntimeError:
            return None

    def put(self, value: Any) -> None:
        """Set its value."""
        setattr(self.owner, self.name, value)


class _Products:
    """Hold the setting of matrix products, which has functions instead of an attribute."""

    @property
    def precision(self) -> str:
        """Return the result of :func:`torch.get_float32_matmul_precision`."""
        return torch.get_float32_matmul_precision()

    @precision.setter
    def precision(self, value: str) -> None:
        torch.set_float32_matmul_precision(value)


def _switches() -> list[_Switch]:
    """Return all settings, in the order in which they are to be set.

    Each operator has one since PyTorch 2.9. The older ones, of a whole library, change those of its
    operators, so they come first; left as they are, they would contradict their operators, and PyTorch
    itself asks them.
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
