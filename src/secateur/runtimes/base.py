"""Define the interface of all runtimes: run a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from secateur.errors import UsageError
from secateur.runtimes.metadata import ExportMetadata

Batch = Sequence[Tensor]
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Runner:
    """A network prepared in one runtime.

    Attributes:
        runtime: name of the runtime, such as ``onnxruntime``.
        run: function that runs one batch; returns when the result is ready.
        shapes: of its inputs, without the batch, as far as they are known and fixed.
        metadata: the metadata of the file, if Secateur wrote it.
        device: device of its inputs.

    >>> double = Runner("eager", lambda inputs: (2 * inputs[0],))
    >>> double(torch.ones(1, 2))
    (tensor([[2., 2.]]),)
    """

    runtime: str
    run: Callable[[Batch], tuple[Tensor, ...]] = field(repr=False)
    shapes: tuple[tuple[int, ...], ...] = ()
    metadata: ExportMetadata | None = None
    device: torch.device = _CPU

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run one batch.

        Args:
            *inputs: in the order of the network's arguments, the batch first in each.

        Returns:
            The outputs, flat.

        Raises:
            UsageError: their number or shapes are not those of the network.
        """
        given = tuple(tuple(item.shape[1:]) for item in inputs)
        if self.shapes and given != self.shapes:
            wanted, found = _sides(self.shapes), _sides(given)
            raise UsageError(f"the network takes inputs of {wanted} after the batch, not {found}")
        return self.run(inputs)


def existing(path: str | Path) -> Path:
    """Check that an exported file exists.

    Raises:
        UsageError: it does not.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path} does not exist; give an exported file")
    return path


def _sides(shapes: Sequence[tuple[int, ...]]) -> str:
    return " and ".join("x".join(map(str, shape)) or "nothing" for shape in shapes)
